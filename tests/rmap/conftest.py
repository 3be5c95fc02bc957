"""The plugin with the older generations as it is in this tree, whatever is installed."""

from __future__ import annotations

from tests.history.conftest import history

__all__ = ["history"]
