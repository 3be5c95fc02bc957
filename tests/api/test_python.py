"""The Python names a user holds, as the interface page promises them."""

from __future__ import annotations

from pathlib import Path

import pytest

import polymmu
from polymmu.errors import SyscallError, UserMistake
from polymmu.machine import FileHandle
from polymmu.mm import pagecache
from polymmu.structs import File, vm_area_struct

TRACE = Path(__file__).parents[2] / "examples" / "sort.npz"
PAGE = 4096


@pytest.fixture
def machine() -> polymmu.Machine:
    return polymmu.Machine.from_file("x86_64", sets=["cpus=2"])


def test_the_first_example_works(machine: polymmu.Machine) -> None:
    mm = machine.new_mm()
    va = mm.mmap(length=1 << 21, prot="rw")
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    cpu.store(va, b"hello")
    assert cpu.load(va, 5) == b"hello"
    mm.munmap(va, 1 << 21)
    mm.exit()
    assert "x86_64" in str(machine.report())


def test_report_is_the_json_and_rows_have_dotted_paths() -> None:
    report = polymmu.Machine.from_file("skylake").run(TRACE)
    value = report.to_dict()
    (row,) = report.rows()
    assert row["accesses.total"] == value["accesses"]["total"]
    assert row["tlb.L1D.hits"] == sum(tlb["hits"] for tlb in value["tlb"] if tlb["name"] == "L1D")
    assert row["tlb.L1D@0.hits"] == next(tlb["hits"] for tlb in value["tlb"] if tlb["name"] == "L1D")


def test_compare_runs_each_machine_afresh() -> None:
    first, second = polymmu.compare(TRACE, ["x86_64", "x86_64"])
    assert first.to_dict() == second.to_dict()


def test_refused_access_tells_where_what_and_why(machine: polymmu.Machine) -> None:
    mm = machine.new_mm()
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    va = mm.mmap(PAGE, "r")
    with pytest.raises(polymmu.SegmentationFault) as refused:
        cpu.store(va + 5, b"x")
    assert (refused.value.va, refused.value.access) == (va + 5, "store")
    assert refused.value.reason == "mapping is not writable"
    with pytest.raises(polymmu.SegmentationFault, match="no mapping here"):
        cpu.load(va + PAGE, 1)


def test_cpu_without_a_program_refuses_an_access(machine: polymmu.Machine) -> None:
    with pytest.raises(polymmu.SegmentationFault, match="switch_mm"):
        machine.cpus[0].load(0x1000, 1)


def test_mistaken_arguments_are_value_errors_with_the_way_out(machine: polymmu.Machine) -> None:
    mm = machine.new_mm()
    for call, text in (
        (lambda: mm.mmap(0), "not positive"),
        (lambda: mm.mmap(PAGE, "q"), "use letters of 'rwx'"),
        (lambda: mm.mmap(PAGE, fixed=True), "needs an address"),
        (lambda: mm.mmap(PAGE, offset=7), "multiple of the page size"),
        (lambda: mm.munmap(7, PAGE), "multiple of the page size"),
        (lambda: mm.madvise(0, PAGE, "willneed"), "known: dontneed"),
        (lambda: machine.new_file(-1), "give 0 or more"),
        (lambda: machine.cpus[0].load(-1, 1), "64-bit address"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_refused_system_call_is_an_os_error_with_linuxs_number(machine: polymmu.Machine) -> None:
    mm = machine.new_mm()
    with pytest.raises(OSError, match="Cannot allocate") as refused:
        mm.mmap(1 << 60)
    assert refused.value.errno == 12
    assert isinstance(refused.value, SyscallError)


def test_exited_address_space_cannot_be_used(machine: polymmu.Machine) -> None:
    mm = machine.new_mm()
    mm.exit()
    with pytest.raises(UserMistake, match="has exited"):
        mm.mmap(PAGE)


def test_calls_run_where_the_program_ran_last_or_where_one_says(machine: polymmu.Machine) -> None:
    mm = machine.new_mm()
    machine.cpus[1].switch_mm(mm)
    va = mm.mmap(4 * PAGE)
    machine.cpus[1].store(va, bytes(4 * PAGE))
    mm.munmap(va, PAGE)
    assert machine.report().to_dict()["shootdown"] == {"ipis": 0, "local": 1, "broadcast": 0}
    with machine.cpus[0]:
        mm.munmap(va + PAGE, PAGE)
    assert machine.report().to_dict()["shootdown"] == {"ipis": 1, "local": 1, "broadcast": 0}


def test_exec_leaves_only_a_stack(machine: polymmu.Machine) -> None:
    mm = machine.new_mm()
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    cpu.store(mm.mmap(PAGE), b"old")
    fresh = mm.exec()
    ((start, end, rights),) = fresh.mappings()
    assert (end, rights) == (machine.stack_top, "rw")
    cpu.store(end - 8, b"argument")
    assert start < end - 8
    fresh.exit()


def test_file_that_shrinks_takes_its_pages_from_every_mapping(machine: polymmu.Machine) -> None:
    mm = machine.new_mm()
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    file = machine.new_file(3 * PAGE, "data")
    shared = mm.mmap(3 * PAGE, "rw", shared=True, file=file)
    private = mm.mmap(3 * PAGE, "rw", file=file)
    cpu.store(shared + 2 * PAGE, b"seen by all")
    assert cpu.load(private + 2 * PAGE, 11) == b"seen by all"
    cpu.store(private + 2 * PAGE, b"mine alone!")
    file.truncate(PAGE)
    for va in (shared, private):
        with pytest.raises(polymmu.SegmentationFault, match="beyond the end of the file"):
            cpu.load(va + 2 * PAGE, 1)
    mm.exit()
    file.close()
    assert machine.kernel.mappings.live == 0


def test_nothing_is_left_when_everything_is_given_back(machine: polymmu.Machine) -> None:
    before = machine.kernel.free.free
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    va = mm.mmap(64 * PAGE)
    machine.cpus[0].store(va, bytes(64 * PAGE))
    child = mm.fork()
    machine.cpus[1].switch_mm(child)
    machine.cpus[1].store(va, b"x")
    mm.exit()
    child.exit()
    tables = machine.report().to_dict()["tables"]
    # The kernel's own root was there before the counting began.
    assert tables["live"] == 0
    assert machine.kernel.free.free == before
    assert machine.kernel.vmas.live == 0


def test_the_package_imports_without_numpy() -> None:
    import subprocess
    import sys

    code = "import polymmu, sys; sys.exit('numpy' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_driver_may_choose_its_own_page_protection(machine: polymmu.Machine) -> None:
    uncached = 1 << 4  # PCD in an x86 pte

    def own_protection(file: File, vma: vm_area_struct) -> None:
        vma.vm_page_prot |= uncached

    device = pagecache.new_file(machine.kernel, "device", 2 * PAGE, mmap=own_protection)
    mm = machine.new_mm()
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    va = mm.mmap(2 * PAGE, "rw", file=FileHandle(machine, device))
    cpu.store(va, b"private")
    assert cpu.load(va, 7) == b"private"
    assert machine.translate(va).path[-1][2] & uncached
