# ruff: noqa: E501 - a message stands here as the user sees it: on one line
"""``--set key.path=value``: an overlay of one value, with the place ``--set ...``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polymmu.description.model import MachineDescription

BASE = """\
name: m
arch: toy
memory: 1 GiB
tlbs:
  L1: {level: 1, page_sizes: [4 KiB], entries: 64, ways: 4}
  L2: {level: 2, page_sizes: [4 KiB], entries: 1024, ways: 4}
"""


def test_each_value_is_yaml_and_later_ones_win(load: Callable[..., MachineDescription]) -> None:
    sets = [
        "tlbs.L2.entries=512",
        "tlbs.L2.page_sizes=[4 KiB, 2 MiB]",
        "tlbs.L2.entries=2048",
        "memory=2 GiB",
        "costs.ipi=5",
        "toy.levels=5",
        "walk_caches.PDE={level: 1, entries: 8, ways: 2}",
        "tlbs.L1={ways: 8}",
        "name=other",
    ]
    machine = load(BASE, sets)
    assert (machine.tlbs["L2"].entries, machine.tlbs["L2"].page_sizes) == (2048, (4096, 2 << 20))
    assert (machine.memory, machine.costs.ipi, machine.section.levels) == (2 << 30, 5, 5)
    assert (machine.walk_caches["PDE"].ways, machine.tlbs["L1"].ways, machine.tlbs["L1"].entries) == (
        2,
        8,
        64,
    )
    assert machine.name == "other"


def test_null_takes_a_part_away(load: Callable[..., MachineDescription]) -> None:
    assert list(load(BASE, ["tlbs.L2=null"]).tlbs) == ["L1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tlbs.L2.entires=8", "tlbs.L2: unknown key 'entires' (known: level, holds, page_sizes, entries, ways, replacement, hit_cycles); did you mean 'entries'?"),
        ("tlbs.L22.entries=8", "tlbs.L22: missing 'level', 'page_sizes', 'ways'; did you mean 'L2'?"),
        ("tlb.L2.entries=8", "unknown key 'tlb' (known: machine, name, summary, arch, cpus, memory, swap, kernel, tlbs, walk_caches, costs, seed, toy); did you mean 'tlbs'?"),
        ("toy.level=5", "toy: unknown key 'level' (known: levels, tagged, paging, banks, hole); did you mean 'levels'?"),
        ("cpus=0", "cpus: 0 is less than 1"),
        ("cpus.x=1", "cpus: found a mapping, expected one value"),
        ("tlbs.L2.ways=3", "tlbs.L2.ways: 3 ways do not divide 1024 entries into whole sets"),
        ("memory=4k", "memory: '4k' is not a size (bytes, or a whole number of B, KiB, MiB, GiB, TiB); did you mean '4 KiB'?"),
        ("toy.tagged=on", "toy.tagged: 'on' is not true or false; write true"),
        ("tlbs.L3=null", "tlbs.L3: no value, and nothing inherited that null could take away"),
        ("cpus", "expected key.path=value, such as tlbs.L2.entries=1024"),
        ("=3", "expected key.path=value, such as tlbs.L2.entries=1024"),
        ("tlbs..ways=3", "expected key.path=value, such as tlbs.L2.entries=1024"),
        ("." * 5000 + "=3", "expected key.path=value, such as tlbs.L2.entries=1024"),
        ("a" + ".a" * 5000 + "=3", "expected key.path=value, such as tlbs.L2.entries=1024"),
        ("cpus=", "no value after '='; to take the key away write cpus=null"),
        ("cpus=[", "not YAML: expected the node content, but found '<stream end>' while parsing a flow node"),
        ("cpus=*x", "alias '*x' names nothing above; anchors are written '&x'"),
        ("extends=x", "unknown key 'extends' (known: machine, name, summary, arch, cpus, memory, swap, kernel, tlbs, walk_caches, costs, seed, toy)"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_option_as_it_was_typed(
    text: str, message: str, refusal: Callable[..., str]
) -> None:
    assert refusal(BASE, [text]) == f"--set {text}: {message}"


def test_an_unprintable_option_stays_on_one_line(refusal: Callable[..., str]) -> None:
    assert refusal(BASE, ["cpus=1\n2"]) == "--set 'cpus=1\\n2': cpus: '1 2' is not a whole number"


def test_mistakes_of_the_file_and_of_the_options_are_told_together(refusal: Callable[..., str]) -> None:
    assert refusal(BASE + "seed: x\n", ["cpus=0"]).splitlines() == [
        "--set cpus=0: cpus: 0 is less than 1",
        "f.yaml:7:7: seed: 'x' is not a whole number",
    ]
