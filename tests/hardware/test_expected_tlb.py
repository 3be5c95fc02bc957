"""Hits and misses of real programs equal an independent simulator's, exactly (``expected_tlb.json``)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from polymmu.description.model import TlbSpec
from polymmu.hardware.walk import RadixTranslation
from tests.hardware.bench import CACHES, Bench, MapsWhatIsTouched
from tests.hardware.x86_formats import base_64k, four_level

TRACES = Path(__file__).parents[1] / "data" / "traces"
EXPECTED = json.loads((TRACES / "expected_tlb.json").read_text())
COUNTS = ("hits", "misses", "compulsory")


def path_of(trace: str) -> Path:
    """Where a trace of the data set is kept."""
    here = TRACES / f"{trace}.npz"
    return here if here.exists() else Path(__file__).parents[2] / "examples" / f"{trace}.npz"


def geometry(config: str) -> tuple[RadixTranslation, dict[str, TlbSpec]]:
    """The machine that a configuration's name describes."""
    translation = base_64k() if config.endswith("64K") else four_level()
    if "32 fa" in config:
        first, ways, entries, second_ways = 32, 32, 512, 8
    else:
        first, ways, entries, second_ways = 64, 4, 1024, 4
    sizes = (translation.layout.page_size,)
    return translation, {
        "l1i": TlbSpec(level=1, holds=("fetch",), page_sizes=sizes, entries=first, ways=ways),
        "l1d": TlbSpec(level=1, holds=("load", "store"), page_sizes=sizes, entries=first, ways=ways),
        "l2": TlbSpec(level=2, page_sizes=sizes, entries=entries, ways=second_ways),
    }


@pytest.mark.parametrize("trace", [name for name in EXPECTED if path_of(name).exists()])
def test_counts_equal_the_independent_simulators(trace: str) -> None:
    with np.load(path_of(trace)) as archive:
        columns = {name: archive[name] for name in archive.files if not name.startswith("mm_")}
    for config, expected in EXPECTED[trace].items():
        if not config.startswith("l1"):
            continue
        translation, tlbs = geometry(config)
        bench = Bench(translation, tlbs, CACHES if translation.layout.levels == 4 else {})
        bench.cpu.vectors = MapsWhatIsTouched(bench)
        bench.cpu.replay(columns["op"], columns["vaddr"], columns["size"], 0, len(columns["op"]))
        counted = bench.cpu.counters()["tlb"]
        got = {f"{tlb}_{count}": counted[tlb][count] for tlb in tlbs for count in COUNTS}
        assert got == {key: expected[key] for key in got}, config


def test_every_trace_of_the_data_set_is_there() -> None:
    assert all(path_of(name).exists() for name in EXPECTED)
