"""Earlier generations of the mm algorithms, chosen by name in a machine file's ``kernel:`` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymmu.variants import hookimpl
from polymmu_history.gather import PercpuGather, StackGather
from polymmu_history.ptlock import MmTableLock

__all__ = ["MmTableLock", "PercpuGather", "StackGather", "kernel_variants"]


@hookimpl
def kernel_variants() -> Mapping[str, Mapping[str, type[Any]]]:
    """By axis and name."""
    return {
        "gather": {"percpu": PercpuGather, "stack": StackGather},
        "page_table_lock": {"mm": MmTableLock},
    }
