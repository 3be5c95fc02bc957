"""INV-REF for the swap area: a slot is counted once by each pte that names it, and once by the swap cache.

Read from all tables, like everything in ``state``, when nobody is in the middle of a change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from polymmu.hooks import ArchKernel
from polymmu.mm.tables import read_ptes, table_runs
from polymmu.structs import mm_struct

__all__ = ["check_swap"]


def check_swap(kernel: ArchKernel, mms: Iterable[mm_struct], tell: Callable[[str, str], None]) -> None:
    """Compare what ptes name with what the area and the address spaces count."""
    area, swap = kernel.swap, kernel.shape.pte.swap
    if area is None or swap is None:
        return
    named = Counter(list(area.cache))
    for mm in mms:
        found = _entries_of(mm)
        named.update(swap.split(entry)[1] for entry in found)
        if len(found) != mm.swapents:
            tell("INV-REF", f"mm {mm.serial} counts {mm.swapents} swap entries, its tables have {len(found)}")
    for slot in sorted(named.keys() | area.swap_map.keys()):
        if named[slot] != area.swap_map.get(slot, 0):
            counted = area.swap_map.get(slot, 0)
            tell("INV-REF", f"slot {slot} of the swap area is named {named[slot]} times and counts {counted}")
            return


def _entries_of(mm: mm_struct) -> list[int]:
    kernel: ArchKernel = mm.kernel
    swap = kernel.shape.pte.swap
    assert swap is not None
    found: list[int] = []
    for vma in mm.vmas.values():
        if vma.huge_size:
            continue
        for ptep, addr, stop in table_runs(mm, vma.vm_start, vma.vm_end):
            values = read_ptes(mm, ptep, (stop - addr) >> mm.layout.page_shift)
            found += values[np.flatnonzero(swap.found_in(values))].tolist()
    return found
