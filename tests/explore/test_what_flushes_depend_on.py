"""What the explorer must take for dependent, so that a search to the end finds what an order of two steps decides."""

from __future__ import annotations

from pathlib import Path

import pytest

import polymmu
from polymmu import UserMistake
from polymmu.exploration.explorer import Limits

HEAD = """
scenario: 1
name: few
machine: {cpus: 2, memory: 64 MiB}
setup:
  - mm: a
  - mmap: {mm: a, at: 16p, length: 1p}
  - mmap: {mm: a, at: 1pmd, length: 1p}
  - touch: {mm: a, at: 16p, length: 1p}
"""
UNMAPS = "cpus:\n  0: {mm: a, do: [{munmap: {at: 16p, length: 1p}}]}\n"
PATIENT = Limits(seconds=3600)


def verdict(tmp_path: Path, arch: str, text: str, kernel: str) -> tuple[str, str]:
    """What a search to the end says, and the rule that was broken."""
    path = tmp_path / "few.yaml"
    path.write_text(f"{HEAD}kernel: {kernel}\n{text}")
    told = polymmu.explore(path, arch, strategy="dpor", limits=PATIENT).to_dict()
    return told["verdict"], told["violation"]["invariant"] if told["verdict"] == "violation" else ""


@pytest.mark.parametrize("arch", ["s390", "x86_64"])
def test_a_free_comes_before_the_flush_that_would_have_dropped_what_leads_there(
    tmp_path: Path, arch: str
) -> None:
    """By RCU, so that nothing but the flush itself orders the two."""
    text = UNMAPS + "  1: {mm: a, do: [{load: {at: 16p, may: segv}}]}\n"
    rcu = "table_free: rcu, table_batch: 1"
    assert verdict(tmp_path, arch, text, f"{{{rcu}, gather: bug-26}}") == ("violation", "INV-WALK")
    assert verdict(tmp_path, arch, text, f"{{{rcu}}}") == ("clean", "")


@pytest.mark.parametrize("arch", ["ia64", "ppc64", "sparc64", "x86_64"])
def test_a_flush_that_reaches_other_cpus_without_an_interrupt_is_a_step_too(
    tmp_path: Path, arch: str
) -> None:
    text = (
        "cpus:\n  0: {mm: a, do: [{madvise: {at: 16p, length: 1p}}]}\n  1: {mm: a, do: [{load: {at: 16p}}]}\n"
    )
    assert verdict(tmp_path, arch, text, "{gather: bug-29}") == ("violation", "INV-TLB")
    assert verdict(tmp_path, arch, text, "{gather: linked}") == ("clean", "")


@pytest.mark.parametrize("arch", ["s390", "x86_64"])
def test_an_mm_whose_other_thread_has_exited_has_one_user(tmp_path: Path, arch: str) -> None:
    """Bug 25 frees tables at once then; the other CPU's hardware still has them. With two users it queues them."""
    exits = "  1: {mm: a, do: [{load: {at: 16p, may: segv}}, {exit: {}}]}\n"
    stays = "  1: {mm: a, do: [{load: {at: 16p, may: segv}}]}\n"
    rcu = "{table_free: rcu, gather: bug-25}"
    assert verdict(tmp_path, arch, UNMAPS + exits, rcu) == ("violation", "INV-WALK")
    assert verdict(tmp_path, arch, UNMAPS + stays, rcu) == ("clean", "")


def test_two_calls_that_drop_a_page_are_judged_by_what_the_later_one_leaves_cached(tmp_path: Path) -> None:
    """A zap that finds nothing, of another page, owes nobody a flush: no alarm."""
    both = "cpus:\n  0: {mm: a, do: [{madvise: {at: 16p, length: 1p}}]}\n"
    same = both + "  1: {mm: a, do: [{madvise: {at: 16p, length: 1p}}]}\n"
    other = both + "  1: {mm: a, do: [{madvise: {at: 1pmd, length: 1p}}]}\n"
    assert verdict(tmp_path, "x86_64", same, "{gather: bug-24}") == ("violation", "INV-TLB")
    assert verdict(tmp_path, "x86_64", other, "{gather: bug-24}") == ("clean", "")
    assert verdict(tmp_path, "x86_64", same, "{gather: linked}") == ("clean", "")


def test_a_step_of_one_architecture_is_refused_on_another(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"kernel.ops: 'bug-28' is a step of ppc64; this machine is x86_64"):
        verdict(tmp_path, "x86_64", UNMAPS, "{ops: bug-28}")
    with pytest.raises(UserMistake, match=r"unknown ops 'bug-9999'"):
        verdict(tmp_path, "x86_64", UNMAPS, "{ops: bug-9999}")
