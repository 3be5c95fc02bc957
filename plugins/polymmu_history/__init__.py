"""Earlier generations of the mm algorithms, and known bugs, chosen by name in a machine file's ``kernel:`` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymmu.variants import hookimpl
from polymmu_history import known_bugs
from polymmu_history.gather import PercpuGather, StackGather
from polymmu_history.mremap import Extents32, Extents49, Extents2615, OnePage, OnePageUnlocked
from polymmu_history.recheck import CountRecheck, PageLockRecheck
from polymmu_history.truncate import MutexTruncate, NoBreak, RestartCount2004, RestartVma
from polymmu_history.zap import ZapBlocks, ZapWork2005

__all__ = ["PercpuGather", "StackGather", "kernel_variants"]


@hookimpl
def kernel_variants() -> Mapping[str, Mapping[str, type[Any]]]:
    """Classes by axis and name."""
    return {
        "gather": {"percpu": PercpuGather, "stack": StackGather},
        "unmap_vmas": {"blocks": ZapBlocks, "zap-work": ZapWork2005},
        "truncate": {
            "no-break": NoBreak,
            "restart-vma": RestartVma,
            "restart-count-2004": RestartCount2004,
            "mutex": MutexTruncate,
            **known_bugs.TRUNCATE,
        },
        "fault_recheck": {"count": CountRecheck, "page-lock": PageLockRecheck},
        "mremap": {
            "one-page": OnePage,
            "one-page-unlocked": OnePageUnlocked,
            "extents-2.6.15": Extents2615,
            "extents-3.2": Extents32,
            "extents-4.9": Extents49,
            **known_bugs.MREMAP,
        },
    }
