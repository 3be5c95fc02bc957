"""Files made to exhaust the reader end in one line, soon."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polymmu.description.model import MachineDescription

HEAD = "name: m\narch: toy\nmemory: 1 GiB\n"


def laughs(levels: int) -> str:
    """Each level holds the one before nine times: 9 ** levels values written out."""
    lines = ["l0: &l0 [x]"] + [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def test_aliases_that_multiply_are_refused_where_they_pass_the_limit(refusal: Callable[..., str]) -> None:
    # Values in a list with all below it: l0 2, l1 19, l2 172, l3 1549, l4 13,942. With the root and the keys
    # 15,692 are counted when the first alias of l5 would add another l4.
    assert refusal(laughs(30)) == "f.yaml:6:10: more than 20000 values, aliases written out"


def test_an_alias_used_many_times_within_the_limit_is_fine(load: Callable[..., MachineDescription]) -> None:
    tlbs = "tlbs:\n  L1: {level: 1, page_sizes: &sizes [4 KiB], entries: 64, ways: &ways 4}\n"
    machine = load(f"{HEAD}{tlbs}  L2: {{level: 2, page_sizes: *sizes, entries: 64, ways: *ways}}\n")
    assert (machine.tlbs["L2"].page_sizes, machine.tlbs["L2"].ways) == ((4096,), 4)


def test_a_later_anchor_of_the_same_name_replaces_the_former(load: Callable[..., MachineDescription]) -> None:
    assert load(f"{HEAD}costs: {{ipi: &a 1, fault: &a 2, syscall: *a}}\n").costs.syscall == 2


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: {c: *a}}", "&a {*a : 1}"])
def test_an_alias_inside_what_it_names_is_refused(text: str, refusal: Callable[..., str]) -> None:
    column = text.index("*") + 1
    assert refusal(text) == f"f.yaml:1:{column}: alias '*a' stands inside what it names"


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused_before_it_is_read(opening: str, refusal: Callable[..., str]) -> None:
    assert refusal(opening * 50_000) == f"f.yaml:1:{20 * len(opening) + 1}: nested more than 20 deep"


def test_aliases_cannot_nest_deeper_than_collections(refusal: Callable[..., str]) -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 40))
    # a18 is a list of height 19 in the mapping; a19 would be the twentieth below it.
    assert refusal(text) == "f.yaml:20:12: nested more than 20 deep"


def test_very_many_values_are_refused(refusal: Callable[..., str]) -> None:
    # Line 1 is 'a:' (the mapping, its key, the list: 3 values), so value 20,001 is on line 19,999.
    assert refusal("a:\n" + "- 1\n" * 100_000) == (
        "f.yaml:19999:3: more than 20000 values, aliases written out"
    )
