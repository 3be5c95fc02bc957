"""Pages made from the code are up to date, and every hook is documented and grouped."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from polymmu.hooks import GROUPS, ArchOps

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_make", ROOT / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(make: ModuleType) -> None:
    for path, text in make.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is out of date; run python docs/make.py"


def test_every_hook_is_in_exactly_one_group() -> None:
    specs = [name for name, value in vars(ArchOps).items() if inspect.isfunction(value) and name[0] != "_"]
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(specs)
    assert len(set(grouped)) == len(grouped)


@pytest.mark.parametrize("name", [name for names in GROUPS.values() for name in names])
def test_every_hook_says_when_it_is_called_and_what_goes_wrong(name: str) -> None:
    doc = inspect.getdoc(getattr(ArchOps, name)) or ""
    assert doc.startswith(("Called", "Where"))
    assert "Wrong" in doc or "As ``" in doc or "Undo" in doc
