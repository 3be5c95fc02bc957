"""Every interleaving: who may go next, which orders are alike, and what was covered."""

from __future__ import annotations

__all__ = ["MEMORY_MODELS", "STRATEGIES"]

MEMORY_MODELS = ("sc", "tso")
"""Sequential consistency; store buffers (total store order)."""

STRATEGIES = ("portfolio", "default", "fair", "pct", "dpor", "sleep", "naive", "bounded")
"""Ways to search; ``portfolio`` is all that are worth it, in turn."""
