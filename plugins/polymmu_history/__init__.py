"""Earlier generations of the mm algorithms, chosen by name in a machine file's ``kernel:`` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymmu.variants import hookimpl
from polymmu_history.gather import PercpuGather, StackGather, StackPostedGather
from polymmu_history.linked import Linked30Gather, Linked38Gather, Linked315Gather, Linked413Gather

__all__ = [
    "Linked30Gather",
    "Linked38Gather",
    "Linked315Gather",
    "Linked413Gather",
    "PercpuGather",
    "StackGather",
    "StackPostedGather",
    "kernel_variants",
]


@hookimpl
def kernel_variants() -> Mapping[str, Mapping[str, type[Any]]]:
    """The generations by axis and name, oldest first."""
    return {
        "gather": {
            "percpu": PercpuGather,
            "stack-posted": StackPostedGather,
            "stack": StackGather,
            "linked-3.0": Linked30Gather,
            "linked-3.8": Linked38Gather,
            "linked-3.15": Linked315Gather,
            "linked-4.13": Linked413Gather,
        }
    }
