"""Context numbers: handed out in versions, demapped before their first use on a CPU."""

from __future__ import annotations

from typing import Any

import pytest

from polymmu.arch import Cpu, hookimpl, mm_struct
from polymmu.errors import UserMistake
from polymmu.machine import Machine, Mm
from polymmu_sparc64.context import is_valid, state_of
from tests.arches.sparc64.machines import UPPER, machine, stale_translations

TINY = "sparc64.context_bits=2"  # numbers 0 to 3: the kernel's, a reserved one, two to give


def program(emulated: Machine, text: bytes, cpu: int = 0) -> Mm:
    """An mm with ``text`` at UPPER, run once on a CPU."""
    mm = emulated.new_mm()
    emulated.cpus[cpu].switch_mm(mm)
    mm.mmap(8192, "rw", at=UPPER, fixed=True)
    emulated.cpus[cpu].store(UPPER, text)
    return mm


def number(mm: Mm) -> tuple[int, int]:
    return mm.struct.context.version, mm.struct.context.number


@pytest.mark.parametrize(("kind", "numbers"), [("tsb", 1 << 13), ("vpte", 1 << 10)])
def test_a_generation_has_its_number_of_contexts(kind: str, numbers: int) -> None:
    assert len(state_of(machine(kind).kernel).taken) == numbers


def test_the_first_program_gets_number_2_and_the_kernel_has_0() -> None:
    emulated = machine()
    assert number(program(emulated, b"a")) == (1, 2)
    assert number(program(emulated, b"b")) == (1, 3)
    cpu = emulated.kernel.cpus[0]
    assert cpu.asid == 3


def test_an_mm_that_never_ran_has_no_number() -> None:
    assert number(machine().new_mm()) == (0, 0)


def test_a_new_version_begins_with_number_1_when_none_is_left() -> None:
    emulated = machine("tsb", TINY)
    mms = [program(emulated, b"%d" % n) for n in range(3)]
    assert [number(mm) for mm in mms] == [(1, 2), (1, 3), (2, 1)]
    assert [is_valid(mm.struct) for mm in mms] == [False, False, True]
    emulated.cpus[0].switch_mm(mms[0])
    assert number(mms[0]) == (2, 2)


def test_an_exited_programs_number_is_given_again_in_its_turn() -> None:
    emulated = machine("tsb", TINY)
    first, second = program(emulated, b"a"), program(emulated, b"b")
    first.exit()
    assert number(program(emulated, b"c")) == (1, 2)
    assert number(second) == (1, 3)


@pytest.mark.parametrize("kind", ["tsb", "vpte"])
def test_many_programs_on_few_numbers_read_their_own_memory(kind: str) -> None:
    emulated = machine(kind, TINY, "cpus=2")
    mms = [program(emulated, b"%02d" % n, n % 2) for n in range(7)]
    for turn in range(20):
        for offset, cpu in enumerate(emulated.cpus):
            n = (turn * 3 + offset * 2) % 7
            cpu.switch_mm(mms[n])
            assert cpu.load(UPPER, 2) == b"%02d" % n
            assert not stale_translations(emulated, mms[n])


def test_a_cpu_that_did_not_wrap_gets_a_new_number_for_what_it_runs() -> None:
    emulated = machine("tsb", TINY, "cpus=2")
    resident = program(emulated, b"x", 1)
    for n in range(2):
        program(emulated, b"%d" % n)
    assert is_valid(resident.struct)
    assert number(resident)[0] == 2
    assert emulated.kernel.cpus[1].asid == number(resident)[1]
    assert emulated.cpus[1].load(UPPER, 1) == b"x"


def test_a_number_is_demapped_where_it_was_not_run_yet_and_only_there() -> None:
    emulated = machine("tsb", "cpus=2")
    first = program(emulated, b"a")
    second = program(emulated, b"b")
    issued = emulated.flushes.by_call["switch_mm"].issued
    emulated.cpus[0].switch_mm(first)
    emulated.cpus[0].switch_mm(second)
    assert emulated.flushes.by_call["switch_mm"].issued == issued
    emulated.cpus[1].switch_mm(first)
    assert emulated.flushes.by_call["switch_mm"].issued == issued + 1
    assert first.struct.cpu_mask == 0b11


def test_translations_survive_a_visit_of_another_program() -> None:
    emulated = machine()
    first = program(emulated, b"a")
    program(emulated, b"b")
    emulated.cpus[0].switch_mm(first)
    misses = emulated.kernel.cpus[0].counters()["tlb"]["D"]["misses"]
    emulated.cpus[0].load(UPPER, 1)
    assert emulated.kernel.cpus[0].counters()["tlb"]["D"]["misses"] == misses


def test_without_the_demap_of_a_reused_number_the_next_program_reads_the_last_ones_memory() -> None:
    def switch_mm(cpu: Cpu, following: mm_struct) -> None:
        following.cpu_mask |= 1 << cpu.index
        context: Any = following.context
        if following.kernel.init_mm is None or following is following.kernel.init_mm:
            cpu.load_root(following.pgd)
            return
        context.version, context.number = 1, 2
        cpu.load_root(following.pgd, asid=2, space=following.serial)

    emulated = machine(switch_mm=hookimpl(switch_mm))
    program(emulated, b"secret").exit()
    other = emulated.new_mm()
    emulated.cpus[0].switch_mm(other)
    other.mmap(8192, "rw", at=UPPER, fixed=True)
    assert emulated.cpus[0].load(UPPER, 6) == b"secret"


def test_the_only_cpu_that_runs_a_program_flushes_alone_and_the_others_demap_when_they_come() -> None:
    emulated = machine("tsb", "cpus=2")
    mm = program(emulated, b"x", 1)
    emulated.cpus[0].switch_mm(mm)
    emulated.cpus[0].load(UPPER, 1)
    idle = emulated.new_mm()
    emulated.cpus[1].switch_mm(idle)
    with emulated.cpus[0]:
        mm.mprotect(UPPER, 8192, "r")
    assert mm.struct.cpu_mask == 0b01
    assert emulated.kernel.sched.spent_on.get("ipi", 0) == 0
    emulated.cpus[1].switch_mm(mm)
    assert not stale_translations(emulated, mm)


def test_too_few_numbers_for_the_cpus_are_refused() -> None:
    with pytest.raises(UserMistake, match="4 context numbers are too few for 3 CPUs"):
        machine("tsb", TINY, "cpus=3")
