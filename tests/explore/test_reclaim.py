"""Reclaim beside whoever gives pages back: nobody takes hold of a page, or takes it out of its file, that is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

import polymmu

GENERAL = Path(__file__).parent / "general"


@pytest.mark.parametrize("name", ["swap-and-discard", "swap-out-and-truncate", "swap-out-a-file"])
def test_every_interleaving_of_a_page_that_goes_two_ways_is_clean(name: str) -> None:
    found = polymmu.explore(GENERAL / f"{name}.yaml", "x86_64")
    assert found.verdict.verdict == "clean", found
