"""Earlier generations of the mm algorithms, chosen by name in a machine file's ``kernel:`` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymmu.variants import hookimpl
from polymmu_history.clusters import ReschedulingScan
from polymmu_history.gather import PercpuGather, StackGather
from polymmu_history.vma_trees import NarrowPrioTrees, VmaLists

__all__ = [
    "NarrowPrioTrees",
    "PercpuGather",
    "ReschedulingScan",
    "StackGather",
    "VmaLists",
    "kernel_variants",
]


@hookimpl
def kernel_variants() -> Mapping[str, Mapping[str, type[Any]]]:
    """Earlier generations by axis."""
    return {
        "cluster_scan": {"resched": ReschedulingScan},
        "gather": {"percpu": PercpuGather, "stack": StackGather},
        "rmap_tree": {"list": VmaLists, "prio-narrow": NarrowPrioTrees},
    }
