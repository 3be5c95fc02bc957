"""Earlier generations of the mm algorithms, chosen by name in a machine file's ``kernel:`` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymmu.variants import hookimpl
from polymmu_history.gather import PercpuGather, StackGather

__all__ = ["PercpuGather", "StackGather", "kernel_variants"]


@hookimpl
def kernel_variants() -> Mapping[str, Mapping[str, type[Any]]]:
    """The generations of the gather."""
    return {"gather": {"percpu": PercpuGather, "stack": StackGather}}
