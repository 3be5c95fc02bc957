"""The kit itself: it passes what is right, fails what is wrong with place and value, and skips with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polymmu import conformance
from polymmu.cli.main import main
from polymmu.conformance import GROUPS, Bench, NotApplicable, checks_of
from polymmu.conformance.bench import tables_for, tables_in_memory
from polymmu.conformance.leftovers import size_of
from polymmu.conformance.run import attempt
from polymmu.errors import UserMistake
from polymmu.registry import Arch, replaced
from polymmu.structs import mm_struct
from tests.conformance.toys import ODD, TOY, bench_of
from tests.mm.toy import PAGE, PMD, PUD

RANDOM_PROGRAMS = conformance.Programs().test_random_programs_read_what_a_dictionary_says


def outcomes(bench: Bench, *names: str) -> dict[str, tuple[str, str]]:
    return {each.check: (each.status, each.reason) for each in conformance.run(bench, GROUPS, names)}


@pytest.mark.parametrize("arch", [TOY, ODD], ids=lambda arch: arch.name)
def test_the_toys_fail_in_the_one_thing_they_do_wrong(arch: Arch) -> None:
    """Their root_of takes no notice of the space it is asked for."""
    failed = {
        check: reason for check, (status, reason) in outcomes(bench_of(arch)).items() if status == "failed"
    }
    assert failed == {
        "an_address_space_that_does_not_exist_is_refused": "root_of took 'no such space' for an address space"
    }


def test_a_skip_says_what_is_missing() -> None:
    found = outcomes(bench_of(), "HugePages")
    assert len(found) == len(list(checks_of(conformance.HugePages)))
    assert found["a_huge_page_is_one_page"] == ("skipped", "it has no huge pages")
    assert {status for status, _ in found.values()} == {"skipped"}


def test_a_failure_names_place_and_value() -> None:
    bench = bench_of().with_hook("flush_tlb_range", lambda vma, start, end: None)
    status, reason = attempt(
        conformance.Tlb().test_write_rights_taken_from_a_range_are_gone_on_every_cpu, bench
    )
    assert (status, reason) == ("failed", "cpu 0: store to page 1 after mprotect of pages 1 to 1 on cpu 0")


def test_an_exception_of_the_arch_is_a_failure_of_one_line() -> None:
    def raises(mm: mm_struct, addr: int, end: int) -> int:
        raise ZeroDivisionError("in the arch\nsecond line")

    status, reason = attempt(RANDOM_PROGRAMS, bench_of().with_hook("pgd_addr_end", raises))
    assert status == "failed"
    assert reason.startswith("ZeroDivisionError: in the arch (test_kit.py:")


def test_a_declared_deviation_must_be_there_and_one_that_is_there_must_be_declared() -> None:
    bench = bench_of()
    check = conformance.Gather().test_no_table_is_handed_out_again_before_the_flush

    def at_once(tlb: Any, table: int, addr: int) -> None:
        tlb.need_flush = True
        tlb.mm.kernel.ops.table_free(tlb.mm, tlb.mm.layout.pte_level, table)

    early = bench.with_hook("pte_free_tlb", at_once)
    declared = ("deviations", lambda section: ("tables_freed_early",))
    assert attempt(check, bench)[0] == "passed"
    assert attempt(check, early)[0] == "failed"
    assert attempt(check, early.with_hook(*declared))[0] == "passed"
    status, reason = attempt(check, bench.with_hook(*declared))
    assert (status, reason) == (
        "failed",
        "the declared deviation 'tables_freed_early' is not there: nothing was freed early",
    )


def test_the_count_by_brute_force_agrees_with_a_count_by_hand() -> None:
    """A page on either side of a pmd boundary and one far away: 2 pmd tables, 3 pte tables."""
    world = bench_of().world()
    mm = world.program()
    places = (PUD + PMD - PAGE, PUD + PMD, 5 * PUD)
    for va in places:
        mm.mmap(PAGE, at=va, fixed=True)
        world.cpus[0].store(va, b"x")
    assert tables_in_memory(mm.struct) == {(1,), (5,), (1, 0), (1, 1), (5, 0)}
    assert tables_for(mm.struct, PUD + PMD - PAGE, PUD + PMD + PAGE) == {(1,), (1, 0), (1, 1)}


def test_a_replaced_hook_leaves_the_arch_as_it_was() -> None:
    broken = replaced(TOY, "decode_fault", lambda code: "nothing")
    assert TOY.ops.decode_fault(0b110).access == "store"
    with pytest.raises(UserMistake, match="hook decode_fault: answered 'nothing'; a FaultInfo is wanted"):
        broken.ops.decode_fault(0b110)


def test_what_hangs_from_an_archs_state_is_counted() -> None:
    assert size_of({"a": [1, 2], "b": bytearray(b"\0\1\1")}, 100) == 2 + 2 + 2
    assert size_of([np.array([0, 3, 4]), np.ones(100)], 100) == 2 + 2


def test_a_machine_of_another_arch_is_refused() -> None:
    with pytest.raises(UserMistake, match="machine 'x86' is a x86, not a x86_64"):
        Bench.of("x86_64", "x86")


def test_not_applicable_is_a_skip_to_pytest() -> None:
    with pytest.raises(pytest.skip.Exception):
        try:
            conformance.HugePages().test_a_huge_page_is_one_page(bench_of())
        except NotApplicable as reason:
            pytest.skip(str(reason))


# ------------------------------------------------------------------ command line
def test_the_command_line_tells_each_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "x86_64", "--check", "Entries", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["arch"], told["machine"], told["failed"]) == ("x86_64", "x86_64", 0)
    assert {row["group"] for row in told["checks"]} == {"Entries"}
    assert told["passed"] == len(told["checks"]) == len(list(checks_of(conformance.Entries)))


def test_the_text_ends_with_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "x86", "--machine", "x86-pae", "--check", "holes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 0 failed, 1 skipped"


def test_unknown_names_are_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "x87"]) == 2
    assert "unknown architecture 'x87'" in capsys.readouterr().err
    assert main(["conformance", "x86", "--check", "nonesuch"]) == 2
    assert "no check is called like nonesuch" in capsys.readouterr().err


# ------------------------------------------------------------------ pytest
AUTHORS_TEST = """
from polymmu import conformance

class TestMine(conformance.Entries):
    arch = "x86"
    machines = ["x86", "x86-pae"]

class TestAsked(conformance.RangeWalks):
    pass

def test_machine(polymmu_machine):
    assert polymmu_machine.arch.name == "x86_64"
    assert len(polymmu_machine.cpus) == 2
"""


def pytest_on(tmp_path: Path, *arguments: str) -> str:
    (tmp_path / "test_mine.py").write_text(AUTHORS_TEST)
    plugin = ["-p", "polymmu.pytest_plugin"] if not is_installed() else []
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *plugin, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def is_installed() -> bool:
    """Whether this environment's installation knows the plugin's entry point already."""
    from importlib.metadata import entry_points

    return any(point.value == "polymmu.pytest_plugin" for point in entry_points(group="pytest11"))


def test_an_authors_class_runs_every_check_on_every_machine(tmp_path: Path) -> None:
    told = pytest_on(tmp_path, "--polymmu-arch", "x86_64")
    entries, walks = (len(list(checks_of(group))) for group in (conformance.Entries, conformance.RangeWalks))
    assert f"{2 * entries + walks - 1 + 1} passed, 1 skipped" in told
    assert "its address space has no holes" in told


def test_the_plugin_imports_nothing_heavy() -> None:
    code = "import sys, polymmu.pytest_plugin; sys.exit('numpy' in sys.modules or 'polymmu.machine' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
