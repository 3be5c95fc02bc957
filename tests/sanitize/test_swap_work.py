"""Random work on machines whose pages come and go: the sanitizer finds nothing, every byte is where it was stored, and
no slot is left; and with one step left out it does find."""

from __future__ import annotations

import random
from functools import partial

import pytest

from polymmu.machine import Machine, Mm
from polymmu.mm import copy, rmap
from polymmu.structs import EntryRun, mm_struct
from tests.sanitize.random_work import AREA, finished, machine, solo_run, timed_run
from tests.sanitize.test_random_work import MACHINES, SITES, FailOnce, found, nothing_found

FEW = ("x86-pae", "ppc64", "s390")


def solo(name: str, seed: int) -> Machine:
    return solo_run(name, seed, sets=AREA)


def timed(name: str, seed: int) -> Machine:
    return timed_run(name, seed, sets=AREA)


@pytest.mark.parametrize("name", FEW)
def test_nothing_is_found_in_work_that_swaps(name: str) -> None:
    made = solo(name, 1)
    nothing_found(made)
    assert made.report().to_dict()["swap"]["in"] > 0


@pytest.mark.parametrize("name", FEW)
def test_nothing_is_found_when_cpus_swap_at_once(name: str) -> None:
    made = timed(name, 2)
    nothing_found(made)
    assert made.report().to_dict()["swap"]["in"] > 0


def scarce(name: str, seed: int) -> Machine:
    """Three programs on CPUs of their own, each with most of a memory of 1 MiB, and a kernel thread that frees some."""
    made = machine(name, 3, seed, "timed", sets=[*AREA, "memory=1 MiB"])
    page, pages = made.page_size, 150

    def uses(cpu: int, mm: Mm) -> None:
        chance = random.Random(seed * 5 + cpu)
        at, model = mm.mmap(pages * page), dict.fromkeys(range(pages), 0)
        for _ in range(4 * pages):
            n = chance.randrange(pages)
            assert made.cpus[cpu].load(at + n * page, 1)[0] == model[n]
            model[n] = chance.randrange(256)
            made.cpus[cpu].store(at + n * page, bytes([model[n]]))
        if not cpu:
            mm.fork().exit()

    def frees() -> None:
        for _ in range(30):
            made.reclaim(4)
            made.sleep(20_000)

    mms = [made.new_mm() for _ in range(3)]
    for cpu, mm in enumerate(mms):
        made.spawn(f"uses {cpu}", cpu, mm, partial(uses, cpu, mm))
    made.spawn("frees", 1, None, frees)
    made.run_tasks()
    for mm in mms:
        mm.exit()
    return finished(made)


@pytest.mark.parametrize("name", ["x86", "ppc64"])
def test_programs_larger_than_memory_keep_every_byte_on_cpus_at_once(name: str) -> None:
    made = scarce(name, 1)
    nothing_found(made)
    assert made.report().to_dict()["swap"]["out"] > 300


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
def test_nothing_is_found_in_much_work_that_swaps(name: str) -> None:
    for seed in range(3, 23):
        nothing_found(solo(name, seed))
        nothing_found(timed(name, seed))


def test_two_runs_of_one_seed_swap_alike() -> None:
    first, second = timed("x86_64", 4), timed("x86_64", 4)
    assert first.report().to_dict() == second.report().to_dict()


@pytest.mark.parametrize("what", SITES)
def test_nothing_is_left_when_an_allocation_fails_among_swapped_pages(what: str) -> None:
    for nth in (1, 3, 9):
        nothing_found(solo_run("x86", nth, fails=FailOnce(what, nth), sets=AREA))


# ------------------------------------------------------------------ with a step left out
def test_a_child_that_does_not_count_its_entries_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def counts_no_slot(mm: mm_struct, values: EntryRun) -> None:
        pass

    made = Machine.from_file("x86", sets=AREA, sanitize=True)
    mm = made.new_mm()
    at = mm.mmap(made.page_size)
    made.cpus[0].switch_mm(mm)
    made.cpus[0].store(at, b"x")
    mm.swap_out(at, made.page_size)
    monkeypatch.setattr(copy, "swap_duplicate_in", counts_no_slot)
    mm.fork()
    assert made.sanitizer is not None
    made.sanitizer.finish()
    assert found(made) == {"INV-REF"}
    assert any("slot 1" in str(violation) for violation in made.sanitizer.violations)


def test_corpus_97_rss_that_does_not_fall_at_an_unmap_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rmap.try_to_unmap

    def counts_the_wrong_way(*args: object) -> rmap.Unmapped:
        mm.struct.anon_rss += 2
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("polymmu.mm.reclaim.try_to_unmap", counts_the_wrong_way)
    made = Machine.from_file("x86", sets=AREA, sanitize=True)
    mm = made.new_mm()
    at = mm.mmap(made.page_size)
    made.cpus[0].switch_mm(mm)
    made.cpus[0].store(at, b"x")
    mm.swap_out(at, made.page_size)
    assert found(made) == {"INV-REF"}


def test_a_slot_that_nobody_frees_is_left_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Machine.from_file("x86", sets=AREA, sanitize=True)
    mm = made.new_mm()
    at = mm.mmap(made.page_size)
    made.cpus[0].switch_mm(mm)
    made.cpus[0].store(at, b"x")
    mm.swap_out(at, made.page_size)

    def frees_no_slot(mm: mm_struct, values: EntryRun) -> None:
        mm.swapents -= len(values)

    monkeypatch.setattr("polymmu.mm.zap.free_swap_in", frees_no_slot)
    mm.exit()
    assert made.sanitizer is not None
    assert made.sanitizer.balance() == ["1 slots of the swap area left"]
