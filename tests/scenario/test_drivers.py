"""Steps about files that others than programs have a say in: a driver's mmap, and invalidation without i_mutex."""

from __future__ import annotations

import errno

import pytest

from polymmu import Machine, SyscallError
from polymmu.errors import SegmentationFault, UserMistake
from tests.scenario.test_scenarios import MACHINES, doing, run

DRIVER = "  - driver: {name: d, length: 4p}\n"
REFUSING = "  - driver: {name: d, length: 4p, refuses: true}\n"
FILE = "  - file: {name: f, length: 4p}\n"


@pytest.mark.parametrize("name", MACHINES)
def test_a_drivers_memory_is_used_through_its_mapping_and_nothing_is_left(name: str) -> None:
    steps = (
        "mmap: {at: 32p, length: 2p, file: d, shared: true, offset: 1p}",
        "touch: {at: 32p, length: 2p}",
        "munmap: {at: 32p, length: 2p}",
    )
    told = run(doing(*steps, setup=DRIVER), name)
    assert (told["violations"], "finding" in told) == ([], False)


@pytest.mark.parametrize("name", MACHINES)
def test_a_driver_that_refuses_half_way_leaves_nothing(name: str) -> None:
    """Private and writable, so that memory was committed to it (A3.4)."""
    told = run(doing("mmap: {at: 1pmd, length: 4p, file: d, may: refused}", setup=REFUSING), name)
    assert (told["violations"], "finding" in told) == ([], False)


def test_what_a_driver_refuses_is_a_finding_unless_it_may() -> None:
    told = run(doing("mmap: {at: 32p, length: 4p, file: d, shared: true}", setup=REFUSING))
    assert told["finding"] == "cpus.0.do[0]: mmap: the device of d is gone"


def test_a_mapping_of_more_than_the_driver_has_is_refused() -> None:
    told = run(doing("mmap: {at: 32p, length: 4p, file: d, shared: true, offset: 1p}", setup=DRIVER))
    assert told["finding"] == "cpus.0.do[0]: mmap: d has 4 pages, not 5"


@pytest.mark.parametrize("name", MACHINES)
def test_memory_of_a_device_that_is_pulled_out_is_reached_by_nobody(name: str) -> None:
    steps = (
        "mmap: {at: 32p, length: 4p, file: d, shared: true}",
        "touch: {at: 32p, length: 4p}",
        "fork: {child: b}",
        "remove: {driver: d}",
        "touch: {at: 32p, length: 4p, may: segv}",
        "touch: {mm: b, at: 32p, length: 4p, may: segv}",
        "mmap: {at: 64p, length: 1p, file: d, shared: true, may: refused}",
        "exit: {mm: b}",
    )
    told = run(doing(*steps, setup=DRIVER), name)
    assert (told["violations"], "finding" in told) == ([], False)
    assert told["scenario"]["refused_accesses"] == 2


def test_where_a_device_was_pulled_out_nothing_is_mapped() -> None:
    told = run(
        doing("mmap: {at: 32p, length: 1p, file: d}", "remove: {driver: d}", "load: {at: 32p}", setup=DRIVER)
    )
    assert "the driver mapped nothing here" in told["finding"]


def test_its_memory_is_free_at_once() -> None:
    machine, before = a_machine()
    mm, file = machine.new_mm(), machine.new_driver(4 * 4096, "d")
    with machine.cpus[0] as cpu:
        cpu.switch_mm(mm)
        at = mm.mmap(4 * 4096, shared=True, file=file)
        held = before - machine.kernel.free.free
        file.remove()
        assert before - machine.kernel.free.free == held - 4
        file.remove()  # once more, as hot unplugging may say
        with pytest.raises(SegmentationFault):
            cpu.load(at, 1)
        mm.exit()
    file.close()
    assert machine.kernel.free.free == before


def test_only_a_device_can_be_pulled_out() -> None:
    with pytest.raises(UserMistake, match=r"remove: f has no device that could be removed"):
        run(doing("remove: {driver: f}", setup=FILE))


def test_a_range_that_is_invalidated_is_brought_again_and_the_file_keeps_its_bytes() -> None:
    machine = Machine.from_file("x86_64", sets=["memory=64 MiB"], sanitize=True)
    mm, file = machine.new_mm(), machine.new_file(4 * 4096)
    with machine.cpus[0] as cpu:
        cpu.switch_mm(mm)
        shared, private = mm.mmap(4 * 4096, shared=True, file=file), mm.mmap(4 * 4096, file=file)
        for page in range(4):
            cpu.store(shared + page * 4096, b"new")
        cpu.store(private + 4096, b"own")
        file.invalidate(4096, 2 * 4096)
        # Pages 1 and 2 of the shared mapping went, the private copy of page 1 did not.
        assert (mm.struct.file_rss, mm.struct.anon_rss) == (2, 1)
        assert [cpu.load(shared + page * 4096, 3) for page in range(4)] == [b"new"] * 4
        assert cpu.load(private + 4096, 3) == b"own"
    assert machine.sanitizer is not None
    machine.sanitizer.finish()
    assert not machine.sanitizer.violations
    for offset, length in ((-4096, 4096), (0, 0)):
        with pytest.raises(SyscallError) as refused:
            file.invalidate(offset, length)
        assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize("lock", ["spin", "mutex"])
@pytest.mark.parametrize("name", ["x86_64", "s390", "ia64"])
def test_invalidation_beside_a_user_and_a_truncation_is_clean_under_timed(name: str, lock: str) -> None:
    text = f"""
    scenario: 1
    name: s
    machine: {{cpus: 3}}
    kernel: {{i_mmap_lock: {lock}, zap_block: 1}}
    setup:
      - mm: a
      - file: {{name: f, length: 8p}}
      - mmap: {{mm: a, at: 16p, length: 8p, file: f, shared: true}}
    cpus:
      0: {{do: [{{invalidate: {{file: f, at: 0p, length: 8p}}}}], times: 20}}
      1: {{mm: a, do: [{{touch: {{at: 16p, length: 8p, may: segv}}}}], times: 20}}
      2: {{do: [{{truncate: {{file: f, length: 4p}}}}, {{truncate: {{file: f, length: 8p}}}}], times: 10}}
    """
    told = run(text, name, sanitize=True)
    assert (told["violations"], "finding" in told) == ([], False)


def a_machine() -> tuple[Machine, int]:
    """And how many frames are free."""
    machine = Machine.from_file("x86_64", sets=["memory=64 MiB"])
    return machine, machine.kernel.free.free


def test_a_driver_keeps_its_memory_until_nobody_has_its_file() -> None:
    machine, before = a_machine()
    mm, file = machine.new_mm(), machine.new_driver(3 * 4096, "d")
    free = machine.kernel.free
    held = before - free.free - 1  # and the mm's root
    assert held == 4  # a block of as many frames as a power of two
    with machine.cpus[0] as cpu:
        cpu.switch_mm(mm)
        at = mm.mmap(3 * 4096, shared=True, file=file)
        cpu.store(at, b"x")
        file.close()
        assert cpu.load(at, 1) == b"x"
        mm.exit()
    assert free.free == before


@pytest.mark.parametrize("mapped_before", [False, True])
def test_a_driver_whose_memory_cannot_be_mapped_gives_it_up_unless_somebody_has_it(
    mapped_before: bool,
) -> None:
    machine, _ = a_machine()
    kernel = machine.kernel
    mm, file = machine.new_mm(), machine.new_driver(4 * 4096, "d")
    if mapped_before:
        mm.mmap(4 * 4096, shared=True, file=file, at=1 << 30, fixed=True)
    before = kernel.free.free
    kernel.free.fail_next = lambda site: site == "table.pte"
    with pytest.raises(SyscallError) as refused:
        mm.mmap(4 * 4096, shared=True, file=file, at=1 << 32, fixed=True)
    kernel.free.fail_next = None
    assert refused.value.errno == errno.ENOMEM
    if mapped_before:
        assert kernel.free.free == before
    else:
        assert kernel.free.free == before + 4
        with pytest.raises(SyscallError, match="has given up its memory"):
            mm.mmap(4096, shared=True, file=file)


def test_a_driver_without_memory_is_a_users_mistake() -> None:
    machine, _ = a_machine()
    with pytest.raises(UserMistake, match="a driver cannot have 0 bytes"):
        machine.new_driver(0)
    with pytest.raises(SyscallError, match="no 32768 free frames in one block"):
        machine.new_driver(128 << 20)


HUGE = "mmap: {at: 16huge, length: 1huge, huge_pages: true}"


@pytest.mark.parametrize("name", ["x86", "x86_64", "s390", "ppc64", "sparc64"])
def test_a_step_maps_the_smallest_huge_pages_of_any_machine(name: str) -> None:
    told = run(doing(HUGE, "store: {at: 16huge}", "munmap: {at: 16huge, length: 1huge}"), name)
    assert (told["violations"], "finding" in told) == ([], False)


def test_a_machine_without_huge_pages_says_so() -> None:
    with pytest.raises(UserMistake) as caught:
        run(doing(HUGE), "s390-31")
    assert str(caught.value) == "s.yaml: cpus.0.do[0]: mmap: 1huge: machine 's390-31' has no huge pages"
