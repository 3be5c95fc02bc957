"""docs/gallery.md says what the explorer says now. It takes minutes, so only the slow run makes the comparison."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_every_entry_is_on_the_page() -> None:
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    entries = sorted((DOCS.parent / "configs" / "polymmu_scenarios").glob("[0-9]*.yaml"))
    assert [path.stem for path in entries if f"\n## {path.stem}\n" not in page] == []


@pytest.mark.slow
def test_the_page_of_some_entries_is_what_the_explorer_says() -> None:
    names = ["010-mremap-beside-truncation", "016c-no-floor", "062-dirty-cow"]
    done = subprocess.run(
        [sys.executable, str(DOCS / "gallery.py"), *names], capture_output=True, text=True, check=True
    )
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    _, *sections = done.stdout.split("\n## ")
    assert len(sections) == len(names)
    assert [section for section in sections if f"\n## {section.rstrip()}\n" not in page] == []
