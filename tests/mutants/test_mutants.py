"""Single changes to the source are noticed, and nothing is noticed in the source as it is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mutants import table
from tests.mutants.killers import find, killers_of
from tests.mutants.overlay import ROOT, Row, rows
from tests.mutants.table import Verdict, alike, judge, page, sampled

ROWS = rows()
ROW = next(iter(ROWS.values()))
LEAST = 90


def test_every_row_still_applies() -> None:
    for row in ROWS.values():
        assert row.text() != (ROOT / row.file).read_text(encoding="utf-8")
        compile(row.text(), row.file, "exec")  # what cannot be imported is killed by anybody
    assert len(ROWS) >= LEAST


def test_a_text_that_stands_twice_or_not_at_all_is_refused() -> None:
    for old in ("mm.page_table_lock.lock()", "no such line"):
        row = Row(name="x", file="core/polymmu/mm/hugetlb.py", old=old, new="pass", breaks="")
        with pytest.raises(ValueError, match="times in"):
            row.text()


def test_a_module_with_compiled_kernels_is_refused() -> None:
    row = Row(name="x", file="arches/polymmu_s390/dat.py", old="def refused(", new="def refuses(", breaks="")
    with pytest.raises(ValueError, match="compiled"):
        row.text()


def test_a_change_reaches_whoever_imports_the_module_and_no_file() -> None:
    """In a process of its own: this one has the module as it is."""
    row = ROW
    before = {path: path.stat().st_mtime_ns for path in (ROOT / row.file).parent.glob("*.py")}
    program = (
        "from tests.mutants.overlay import install, rows\n"
        f"row = rows()[{row.name!r}]\n"
        "install(row)\n"
        "import importlib\n"
        "module = importlib.import_module(row.module)\n"
        "print(module.__spec__.loader.row.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [row.name]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_killers_are_asked_in_the_rows_order_first() -> None:
    for row in ROWS.values():
        assert killers_of(row)[: len(row.by)] == list(dict.fromkeys(row.by))


def test_pages_differ_by_what_was_found_and_not_by_seconds() -> None:
    one = "| x | y | kit/Tlb@s390 | INV-TLB | 1.2 |\n"
    assert alike(one, one.replace("1.2", "3.4"))
    assert not alike(one, one.replace("s390", "ia64"))
    assert "0 killed" in page([Verdict(ROW, "", "", 0.0)])


def test_who_came_to_no_end_is_asked_about_the_source_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels are compiled meanwhile, it came to no end there either, and the mutant is judged again."""
    endless, told = (
        Verdict(ROW, "kit/Tlb@x86", "Endless: no end", 8.0),
        Verdict(ROW, "kit/Tlb@x86", "INV-TLB", 1.0),
    )
    verdicts, others = iter((endless, endless, told)), iter((True, True))
    monkeypatch.setattr(table, "_judged", lambda row: next(verdicts))
    monkeypatch.setattr(table, "_finds_anyway", lambda killer: next(others))
    assert judge(ROW) is told
    monkeypatch.setattr(table, "_judged", lambda row: endless)
    monkeypatch.setattr(table, "_finds_anyway", lambda killer: False)
    assert judge(ROW) is endless


NAMED = sorted({name for row in ROWS.values() for name in row.by})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED[::3])
def test_nobody_notices_anything_in_the_source_as_it_is(name: str) -> None:
    assert find(name) == ""


@pytest.mark.slow
@pytest.mark.parametrize("row", sampled(20), ids=lambda row: row.name)
def test_a_sample_of_the_mutants_is_killed(row: Row) -> None:
    assert judge(row).killer


@pytest.mark.long
def test_all_mutants_are_killed() -> None:
    assert [row.name for row in ROWS.values() if not judge(row).killer] == []


@pytest.mark.long
def test_nobody_at_all_notices_anything_in_the_source_as_it_is() -> None:
    names = dict.fromkeys(name for row in ROWS.values() for name in killers_of(row))
    assert {name: found for name in names if (found := find(name))} == {}
