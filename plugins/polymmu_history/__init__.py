"""Earlier generations of the mm algorithms, and known bugs, chosen by name in a machine file's ``kernel:`` section.

A generation is called as Linux called it. A known bug is called ``bug-NUMBER``, with a letter where one number has
several, on the axis whose step it gets wrong; all else about it is as today.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymmu.variants import hookimpl
from polymmu_history import known_bugs
from polymmu_history.clusters import ReschedulingScan
from polymmu_history.freeing import ClearPageRange, ClearPageTables
from polymmu_history.freeing_bugs import FREEING_BUGS
from polymmu_history.gather import PercpuGather, StackGather, StackPostedGather
from polymmu_history.gather_bugs import GATHER_BUGS, ZAP_BUGS
from polymmu_history.gup_bugs import GUP
from polymmu_history.linked import Linked30Gather, Linked38Gather, Linked315Gather, Linked413Gather
from polymmu_history.mremap import Extents32, Extents49, Extents2615, OnePage, OnePageUnlocked
from polymmu_history.ops_bugs import OPS_BUGS
from polymmu_history.ptlock import MmTableLock
from polymmu_history.recheck import Bug050, Bug052, CountRecheck, PageLockRecheck
from polymmu_history.rmap_bugs import TRY_TO_UNMAP
from polymmu_history.truncate import MutexTruncate, NoBreak, RestartCount2004, RestartVma
from polymmu_history.vma_trees import NarrowPrioTrees, VmaLists
from polymmu_history.zap import UnmapsTheTableBefore, ZapBlocks, ZapWork2005

__all__ = ["MmTableLock", "PercpuGather", "StackGather", "kernel_variants"]


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
            **GATHER_BUGS,
        },
        "free_pgtables": {
            "clear_page_tables": ClearPageTables,
            "clear_page_range": ClearPageRange,
            **FREEING_BUGS,
        },
        "page_table_lock": {"mm": MmTableLock},
        "unmap_vmas": {
            "blocks": ZapBlocks,
            "zap-work": ZapWork2005,
            "bug-49b": UnmapsTheTableBefore,
            **ZAP_BUGS,
        },
        "truncate": {
            "no-break": NoBreak,
            "restart-vma": RestartVma,
            "restart-count-2004": RestartCount2004,
            "mutex": MutexTruncate,
            **known_bugs.TRUNCATE,
        },
        "fault_recheck": {
            "count": CountRecheck,
            "page-lock": PageLockRecheck,
            "bug-50": Bug050,
            "bug-52": Bug052,
        },
        "mremap": {
            "one-page-unlocked": OnePageUnlocked,
            "one-page": OnePage,
            "extents-2.6.15": Extents2615,
            "extents-3.2": Extents32,
            "extents-4.9": Extents49,
            **known_bugs.MREMAP,
        },
        "gup": GUP,
        "swap_in": known_bugs.SWAP_IN,
        "rmap_tree": {"list": VmaLists, "prio-narrow": NarrowPrioTrees},
        "try_to_unmap": TRY_TO_UNMAP,
        "cluster_scan": {"resched": ReschedulingScan},
        "ops": OPS_BUGS,
    }
