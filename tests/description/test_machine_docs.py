"""What the documentation says about machine files is what the code does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from polymmu.description.model import MachineDescription

PAGE = (Path(__file__).parents[2] / "docs" / "machine-files.md").read_text(encoding="utf-8")
HEAD = "name: m\narch: toy\nmemory: 1 GiB\n"


def value_rows() -> list[tuple[str, list[str], list[str]]]:
    lines = PAGE.partition("| wanted | write |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = (line.strip("|").split(" | ") for line in lines)
    return [(row[0].strip(), re.findall(r"`(.+?)`", row[1]), re.findall(r"`(.+?)`", row[2])) for row in rows]


@pytest.mark.parametrize(("wanted", "accepted", "refused"), value_rows())
def test_values_are_accepted_and_refused_as_the_table_says(
    wanted: str,
    accepted: list[str],
    refused: list[str],
    load: Callable[..., MachineDescription],
    refusal: Callable[..., str],
) -> None:
    def text(value: str) -> str:
        if wanted == "list":
            holds = f"tlbs:\n  L: {{level: 1, page_sizes: [4 KiB], entries: 4, ways: 4, holds: {value}}}\n"
            return (
                HEAD + holds + "  F: {level: 1, page_sizes: [4 KiB], entries: 4, ways: 4, holds: [fetch]}\n"
            )
        key = {
            "number": "seed: ",
            "size": "toy: {hole: ",
            "`true` or `false`": "toy: {tagged: ",
            "text": "summary: ",
        }
        opening = key[wanted]
        return HEAD + opening + value + ("}" if "{" in opening else "") + "\n"

    assert refused
    for value in refused:
        assert value.strip('"') in refusal(text(value))
    for value in accepted:
        load(text(value))
