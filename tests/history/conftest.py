"""The plugin as it is in this tree, whatever is installed."""

from __future__ import annotations

import pytest

import polymmu_history
from polymmu import variants


@pytest.fixture(autouse=True)
def history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "plugins_installed", lambda: (("history", polymmu_history),))
