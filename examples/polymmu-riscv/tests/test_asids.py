"""Address-space numbers: told apart while they last, handed out anew when they run out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polymmu

PAGE = 4096
VA = 64 << 20


def machine_of(bits: int, cpus: int = 2) -> polymmu.Machine:
    return polymmu.Machine.from_file(
        "riscv64", sets=[f"cpus={cpus}", f"riscv.asid_bits={bits}", "memory=64 MiB"]
    )


def test_each_mm_gets_the_next_number_and_keeps_it_on_every_hart() -> None:
    machine = machine_of(16)
    first, second = machine.new_mm(), machine.new_mm()
    one, two = machine.cpus
    one.switch_mm(first)
    two.switch_mm(second)
    assert (one.cpu.asid, two.cpu.asid) == (1, 2)
    one.switch_mm(second)
    two.switch_mm(first)
    assert (one.cpu.asid, two.cpu.asid) == (2, 1)


def test_numbers_are_not_used_where_there_are_no_more_than_two_for_each_hart() -> None:
    for bits, used in ((0, False), (2, False), (3, True)):
        machine = machine_of(bits)
        machine.cpus[0].switch_mm(machine.new_mm())
        assert (machine.cpus[0].cpu.asid != 0) == used, bits


def test_when_numbers_run_out_who_runs_keeps_its_own_and_every_hart_starts_empty() -> None:
    """Three bits: 1 to 7 for programs. The eighth mm finds none left."""
    machine = machine_of(3)
    one, two = machine.cpus
    mms = [machine.new_mm() for _ in range(8)]
    for mm in mms:
        mm.mmap(PAGE, "rw", at=VA, fixed=True)
    two.switch_mm(mms[0])
    two.store(VA, b"0")
    for mm in mms[1:7]:
        one.switch_mm(mm)
        one.store(VA, b"x")
    assert one.cpu.asid == 7
    one.switch_mm(mms[7])
    assert two.cpu.asid == 1, "still running"
    assert one.cpu.asid == 2, "the first that nobody runs with"
    assert one.load(VA, 1) == b"\0", "and nothing of its last owner is left"
    before = machine.report().to_dict()["flushes"]["by_call"]["switch_mm"]["issued"]
    two.switch_mm(mms[1])
    assert two.cpu.asid == 3
    assert machine.report().to_dict()["flushes"]["by_call"]["switch_mm"]["issued"] == before + 1
    two.switch_mm(mms[0])
    assert two.cpu.asid == 1, "an old number is renewed where nobody took it"


@pytest.mark.parametrize("bits", [0, 3, 4, 16])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(steps=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 11), st.booleans()), max_size=120))
def test_no_program_ever_reads_anothers_memory(bits: int, steps: list[tuple[int, int, bool]]) -> None:
    """Twelve programs, one address, two harts; a third kind of step replaces a program by a new one."""
    machine = machine_of(bits)
    written = [bytes([n + 1]) for n in range(12)]
    mms: list[polymmu.Mm | None] = [None] * 12
    serial = 12
    for hart, n, anew in steps:
        mm = mms[n]
        cpu = machine.cpus[hart]
        if mm is not None and anew:
            others = [each for each in machine.cpus if machine.kernel.active_mm[each.index] is mm.struct]
            for each in others:
                each.switch_mm(machine.new_mm())
            mm.exit()
            mm = None
        if mm is None:
            mm = mms[n] = machine.new_mm()
            mm.mmap(PAGE, "rw", at=VA, fixed=True)
            cpu.switch_mm(mm)
            serial += 1
            written[n] = bytes([serial % 251 + 1])
            cpu.store(VA, written[n])
        cpu.switch_mm(mm)
        assert cpu.load(VA, 1) == written[n]
    assert machine.report().to_dict()["flushes"]["missing"] == 0
