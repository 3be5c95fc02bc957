# ruff: noqa: E501 - a message stands here as the user sees it: on one line
"""Every kind of mistake: the exact place and the whole message."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polymmu.description.load import Mistakes
from polymmu.errors import UserMistake

Refusal = Callable[..., str]

HEAD = "name: m\narch: toy\nmemory: 1 GiB\n"
TOP = "machine, name, summary, arch, cpus, memory, swap, kernel, tlbs, walk_caches, costs, seed, toy"
TLB = "level, holds, page_sizes, entries, ways, replacement, hit_cycles"


def tlb(**changes: str) -> str:
    """A machine with one TLB on line 5, indented by two."""
    fields = {"level": "1", "page_sizes": "[4 KiB]", "entries": "64", "ways": "4"} | changes
    return HEAD + "tlbs:\n  L1: {" + ", ".join(f"{k}: {v}" for k, v in fields.items()) + "}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # --- YAML itself
        ("a: [1,\n", "f.yaml:2:1: not YAML: expected the node content, but found '<stream end>' while parsing a flow node"),
        ("name: m\n\tarch: toy\n", "f.yaml:2:1: not YAML: a tab; indent with spaces"),
        ("name: m: n\n", "f.yaml:1:8: not YAML: mapping values are not allowed here"),
        ("name: m\nbell: \x07\n", "f.yaml:2:7: character 0x7 may not stand in YAML; write it as an escape in quotes"),
        ('name: "\\UFFFFFFFF"\n', "f.yaml:1:1: not YAML: an escape or a number after this place is out of range"),
        (HEAD + "---\nname: n\n", "f.yaml:4:1: a second document starts here; one file describes one thing"),
        ("", "f.yaml:1:1: an empty file; a machine needs at least a name and 'extends'"),
        ("# nothing but a comment\n", "f.yaml:1:1: an empty file; a machine needs at least a name and 'extends'"),
        ("- a\n- b\n", "f.yaml:1:1: a machine file is a mapping: lines of 'key: value'"),
        (HEAD + "cpus: 1\ncpus: 2\n", "f.yaml:5:1: key 'cpus' stands here a second time (first on line 4)"),
        (HEAD + "cpus: !!int 4\n", "f.yaml:4:7: tag 'tag:yaml.org,2002:int' is not read; leave it out"),
        (
            HEAD + "cpus: !!python/object/apply:os.system [id]\n",
            "f.yaml:4:7: tag 'tag:yaml.org,2002:python/object/apply...' is not read; leave it out\n"
            "f.yaml:4:7: cpus: found a list, expected one value",
        ),
        (HEAD + "[a, b]: 1\n", "f.yaml:4:1: a key must be a word"),
        (HEAD + "costs: {<<: {ipi: 1}}\n", "f.yaml:4:9: costs: merge keys are not read; use 'extends', or an alias for a whole value"),
        (HEAD + "cpus: *many\n", "f.yaml:4:7: alias '*many' names nothing above; anchors are written '&many'"),
        # --- the machine
        ("summary: s\n", "f.yaml:1:1: missing 'name', 'arch', 'memory'"),
        (HEAD + "machine: 2\n", "f.yaml:4:10: machine: 2 is not one of 1"),
        (HEAD + "tlb: {}\n", f"f.yaml:4:1: unknown key 'tlb' (known: {TOP}); did you mean 'tlbs'?"),
        (HEAD + "CPUS: 2\n", f"f.yaml:4:1: unknown key 'CPUS' (known: {TOP}); did you mean 'cpus'?"),
        (HEAD + "cpus: 0\n", "f.yaml:4:7: cpus: 0 is less than 1"),
        (HEAD + "cpus: 65\n", "f.yaml:4:7: cpus: 65 is more than 64"),
        (HEAD + "cpus: -1\n", "f.yaml:4:7: cpus: -1 is less than 1"),
        (HEAD + "seed: 9223372036854775808\n", "f.yaml:4:7: seed: 9223372036854775808 is more than 9223372036854775807"),
        (HEAD + "cpus: [1]\n", "f.yaml:4:7: cpus: found a list, expected one value"),
        (HEAD + "cpus:\n", "f.yaml:4:1: cpus: no value, and nothing inherited that null could take away"),
        (HEAD + "costs: 5\n", "f.yaml:4:8: costs: found '5', expected a mapping"),
        (HEAD + "kernel: [linked]\n", "f.yaml:4:9: kernel: found a list, expected a mapping, or a release such as \"2.6.11\""),
        (HEAD + "tlbs: [L1]\n", "f.yaml:4:7: tlbs: found a list, expected a mapping by name"),
        (HEAD + "tlbs: {L.1: {}}\n", "f.yaml:4:8: tlbs: 'L.1' is not a name (letters, digits, - and _)"),
        (HEAD + 'summary: "two\\nlines"\n', "f.yaml:4:10: summary: not one line of printable text"),
        ("name: a b\narch: toy\nmemory: 1 GiB\n", "f.yaml:1:7: name: 'a b' is not a name (letters, digits, . _ + -)"),
        ("name: m\narch: toy\nmemory: 1 KiB\n", "f.yaml:3:9: memory: 1 KiB is less than 1 MiB"),
        ("name: m\narch: toy\nmemory: 1025 KiB\n", "f.yaml:3:9: memory: 1049600 bytes are not a whole number of MiB"),
        ("name: m\narch: toy\nmemory: 100 TiB\n", "f.yaml:3:9: memory: 100 TiB is more than 64 TiB"),
        # --- its TLBs and walk caches
        (tlb(entires="3"), f"f.yaml:5:61: tlbs.L1: unknown key 'entires' (known: {TLB}); did you mean 'entries'?"),
        (tlb(ways="5"), "f.yaml:5:58: tlbs.L1.ways: 5 ways do not divide 64 entries into whole sets"),
        (tlb(ways="128"), "f.yaml:5:58: tlbs.L1.ways: 128 ways do not divide 64 entries into whole sets"),
        (tlb(entries="60", ways="12", replacement="plru"), "f.yaml:5:58: tlbs.L1.ways: 12 ways are no full tree; plru needs a power of two"),
        (tlb(replacement="LRU"), "f.yaml:5:74: tlbs.L1.replacement: unknown choice 'LRU' (known: lru, plru, random); did you mean 'lru'?"),
        (tlb(page_sizes="4 KiB"), "f.yaml:5:30: tlbs.L1.page_sizes: found '4 KiB', expected a list; write [4 KiB]"),
        (tlb(page_sizes="[]"), "f.yaml:5:30: tlbs.L1.page_sizes: an empty list; name at least one"),
        (tlb(page_sizes="[4 KiB, 4096]"), "f.yaml:5:30: tlbs.L1.page_sizes: something stands in this list twice"),
        (tlb(page_sizes="[5 KiB]"), "f.yaml:5:30: tlbs.L1.page_sizes: a page of 5120 bytes; page sizes are powers of two from 512 bytes up"),
        (tlb(holds="[laod]"), "f.yaml:5:69: tlbs.L1.holds: unknown choice 'laod' (known: fetch, load, store); did you mean 'load'?"),
        (tlb(holds="[load, store]"), "f.yaml:5:3: tlbs: no TLB of level 1 holds fetch translations"),
        (tlb(level="2"), "f.yaml:5:3: tlbs: no TLB of level 1 holds fetch translations"),
        (
            tlb() + "  L3: {level: 3, page_sizes: [4 KiB], entries: 8, ways: 8}\n",
            "f.yaml:5:3: tlbs: no TLB of level 2 holds fetch translations",
        ),
        (
            tlb() + "  U: {level: 1, holds: [store], page_sizes: [4 KiB], entries: 8, ways: 8}\n",
            "f.yaml:5:3: tlbs: L1 and U both hold store translations of 4096-byte pages at level 1",
        ),
        (tlb() + "  L1x: {entries: 8}\n", "f.yaml:6:8: tlbs.L1x: missing 'level', 'page_sizes', 'ways'; did you mean 'L1'?"),
        (
            HEAD + "walk_caches:\n  A: {level: 1, entries: 8, ways: 8}\n  B: {level: 1, entries: 8, ways: 8}\n",
            "f.yaml:5:3: walk_caches: A and B both hold entries of level 1",
        ),
        # --- the arch and its section
        ("name: m\narch: tyo\nmemory: 1 GiB\n", "f.yaml:2:7: arch: unknown architecture 'tyo' (known: other, toy); did you mean 'toy'?"),
        ("name: m\narch: tyo\nmemory: 1 GiB\ntyo: {}\n", "f.yaml:2:7: arch: unknown architecture 'tyo' (known: other, toy); did you mean 'toy'?"),
        ("name: m\narch: name\nmemory: 1 GiB\n", "f.yaml:2:7: arch: unknown architecture 'name' (known: other, toy)"),
        (HEAD + "other: {size: 1}\n", "f.yaml:4:1: other: section of another arch; delete it, or what extends brought with 'other: null'"),
        (HEAD + "toy: {levels: 6}\n", "f.yaml:4:15: toy.levels: 6 is not one of 4, 5"),
        (HEAD + "toy: {paging: 3level}\n", "f.yaml:4:15: toy.paging: unknown choice '3level' (known: 2level, pae); did you mean '2level'?"),
        (HEAD + "toy: {banks: 3}\n", "f.yaml:4:14: toy.banks: 3 is odd"),
        (HEAD + "toy: {paging: 2level, levels: 5}\n", "f.yaml:4:6: toy: 2level paging has no five levels"),
        ("name: m\narch: other\nmemory: 1 GiB\n", "f.yaml:2:7: other: missing 'size'"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_the_way_out(text: str, message: str, refusal: Refusal) -> None:
    assert refusal(text) == message


def test_every_mistake_of_a_file_is_told_in_the_order_of_the_file(refusal: Refusal) -> None:
    text = (
        "name: m\n"
        "arch: toy\n"
        "memory: 4 KB\n"
        "toy: {levels: 6, tagged: on}\n"
        "tlbs:\n"
        "  L1: {level: 1, page_sizes: [4 KiB], entries: 64, ways: 5}\n"
        "  L2: {level: 0, page_sizes: [5 KiB], entries: 64, ways: 4}\n"
        "cpus: many\n"
    )
    assert [line.split(": ", 2)[:2] for line in refusal(text).splitlines()] == [
        ["f.yaml:3:9", "memory"],
        ["f.yaml:4:15", "toy.levels"],
        ["f.yaml:4:26", "toy.tagged"],
        ["f.yaml:6:58", "tlbs.L1.ways"],
        ["f.yaml:7:15", "tlbs.L2.level"],
        ["f.yaml:7:30", "tlbs.L2.page_sizes"],
        ["f.yaml:8:7", "cpus"],
    ]


def test_each_mistake_is_also_an_exception_of_its_own(load: Callable[..., object]) -> None:
    with pytest.raises(Mistakes) as caught:
        load(HEAD + "cpus: 0\nseed: -1\n")
    assert [(m.place, m.reason) for m in caught.value.mistakes] == [
        ("f.yaml:4:7", "cpus: 0 is less than 1"),
        ("f.yaml:5:7", "seed: -1 is less than 0"),
    ]
    assert isinstance(caught.value, UserMistake)


def test_a_hopeless_file_is_given_up_after_fifty_mistakes(refusal: Refusal) -> None:
    text = HEAD + "".join(f"wrong{n}: 1\n" for n in range(1000))
    lines = refusal(text).splitlines()
    assert len(lines) == 51
    assert "f.yaml:53:1: 50 mistakes found; reading stops here" in lines


def test_a_mistake_behind_an_alias_is_told_for_each_key_that_uses_it(refusal: Refusal) -> None:
    text = HEAD + "costs: {ipi: &bad 1e3, fault: *bad}\n"
    assert refusal(text).splitlines() == [
        "f.yaml:4:14: costs.fault: '1e3' is not a whole number; write 1000",
        "f.yaml:4:14: costs.ipi: '1e3' is not a whole number; write 1000",
    ]


def test_a_column_counts_characters_not_bytes(refusal: Refusal) -> None:
    assert refusal("{name: m, summary: «ä», arch: toy, memory: 4k}\n").startswith("f.yaml:1:44: memory: '4k'")
