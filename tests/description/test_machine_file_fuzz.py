"""Whatever a file holds, the answer is a machine or one line per mistake; and plain values read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.description.load import Mistakes, sha256_of, to_plain
from polymmu.description.model import MachineDescription
from polymmu.errors import UserMistake

Load = Callable[..., MachineDescription]

WHOLE = """\
machine: 1
name: whole
summary: everything said
arch: toy
cpus: 4
memory: 16 GiB
kernel: {gather_batch: 100}
tlbs:
  L1: {level: 1, holds: [fetch, load, store], page_sizes: &p [4 KiB, 2 MiB], entries: 64, ways: 4}
  L2: {level: 2, page_sizes: *p, entries: 1536, ways: 12, hit_cycles: 7, replacement: random}
walk_caches: {PDE: {level: 1, entries: 32, ways: 4}}
costs: {ipi: 0x100, fault: 1}
seed: 12
toy: {levels: 5, tagged: false, hole: 8 KiB}
"""
# fmt: off
WORDS = [
    "name", "arch", "toy", "memory", "tlbs", "L1", "extends", "1", "0755", "1e3", "null", "~", "true", "on",
    "4k", "4 KiB", "4\xa0KiB", "9" * 50, "9.9", "é", "😀", "../x", "x.yaml", "m",
]
SIGNS = [
    ":", ": ", "- ", "[", "]", "{", "}", ",", "&a ", "*a", "!!str ", "!", "'", '"', "|", ">", "#", "? ", "<<",
    "---", "...", "\\", "%YAML ",
]
SPACES = ["\n", "\n  ", "\n    ", " ", "\t", "\ufeff", "\x00", "\x85", "\u2028"]
# fmt: on
TOKENS = st.sampled_from(WORDS + SIGNS + SPACES)
TEXTS = st.one_of(
    st.text(max_size=80),
    st.lists(TOKENS, max_size=40).map("".join),
    st.lists(TOKENS, max_size=25).map("".join).map("name: m\narch: toy\nmemory: 1 GiB\n".__add__),
)


def check(load: Load, text: str, sets: list[str]) -> None:
    try:
        machine = load(text, sets)
    except UserMistake as error:
        mistakes = error.mistakes if isinstance(error, Mistakes) else (error,)
        assert mistakes
        assert all("\n" not in str(mistake) for mistake in mistakes)
    else:
        assert isinstance(machine, MachineDescription)


@given(TEXTS)
@settings(max_examples=400, derandomize=True, deadline=None)
def test_any_text_is_a_machine_or_a_mistake(load: Load, text: str) -> None:
    check(load, text, [])


@given(st.data())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_small_change_of_a_machine_is_a_machine_or_a_mistake(load: Load, data: st.DataObject) -> None:
    text = WHOLE
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(start + 12, len(text))))
        text = text[:start] + data.draw(st.one_of(TOKENS, st.text(max_size=3))) + text[end:]
    check(load, text, [])


PATHS = st.sampled_from(
    ["tlbs", "tlbs.L1", "tlbs.L2.ways", "costs", "toy", "toy.levels", "arch", "kernel", "", ".", "x.y"]
)


@given(
    st.lists(
        st.tuples(PATHS, st.sampled_from(["=", ""]), st.lists(TOKENS, max_size=5).map("".join)), max_size=3
    )
)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_any_option_is_a_machine_or_a_mistake(load: Load, sets: list[tuple[str, str, str]]) -> None:
    check(load, WHOLE, ["".join(parts) for parts in sets])


def test_plain_values_written_as_yaml_load_to_an_equal_machine(load: Load) -> None:
    machine = load(WHOLE)
    plain = to_plain(machine)
    assert plain["toy"] == {"levels": 5, "tagged": False, "paging": "pae", "banks": 2, "hole": 8192}
    assert plain["tlbs"]["L1"]["page_sizes"] == [4096, 2 << 20]
    assert "section" not in plain
    assert load(yaml.safe_dump(plain)) == machine
    assert load(json.dumps(plain)) == machine


def test_the_fingerprint_is_of_the_machine_not_of_how_it_was_written(load: Load) -> None:
    machine = load(WHOLE)
    canonical = json.dumps(to_plain(machine), sort_keys=True, separators=(",", ":"))
    assert sha256_of(machine) == hashlib.sha256(canonical.encode()).hexdigest()
    assert sha256_of(machine) == sha256_of(
        load(WHOLE.replace("16 GiB", "17179869184").replace("seed: 12\n", ""), ["seed=0xc"])
    )
    assert sha256_of(machine) != sha256_of(load(WHOLE, ["seed=13"]))
