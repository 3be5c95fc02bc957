"""INV-RMAP: a walk from the page finds every pte that maps it.

A file page's: if the file has the vma, in its tree under the pages it maps now, or on its list. An anonymous page's:
if the page knows the family of the vma, the family knows the vma, and the page's index leads to the address. Nor does
a family's list lead anywhere else: a walk would read the tables of who is not there any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polymmu.hardware.ram import INDEX, MAPPING
from polymmu.structs import VM_NONLINEAR, Kernel, address_space, anon_vma, mm_struct, vm_area_struct

__all__ = ["is_in_its_file", "not_found", "wrong_families"]


def is_in_its_file(vma: vm_area_struct, mapping: address_space) -> bool:
    """Whether a walk over ``mapping``'s vmas comes to ``vma``."""
    if vma.vm_flags & VM_NONLINEAR:
        return mapping.i_mmap_nonlinear.get(vma.slot) is vma and vma not in mapping.i_mmap
    return vma in mapping.i_mmap and vma.slot not in mapping.i_mmap_nonlinear


def not_found(
    kernel: Kernel[Any], vma: vm_area_struct, index: NDArray[np.int64], pfns: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """For anonymous pages ``pfns``, which ``vma`` maps where it has pages ``index``: whether a walk misses that pte."""
    anon = vma.anon_vma
    if anon is None or anon.root.vmas.get(vma.slot) is not vma:
        return np.ones(len(pfns), dtype=np.bool_)
    table = kernel.frames.table
    missed: NDArray[np.bool_] = (table[MAPPING, pfns] != -1 - anon.root.slot) | (table[INDEX, pfns] != index)
    return missed


def wrong_families(mms: Iterable[mm_struct]) -> list[str]:
    """What is wrong with the families of the vmas of ``mms``: one is free, or lists a vma that is not of it."""
    roots: dict[int, anon_vma] = {}
    wrong: list[str] = []
    for mm in mms:
        for vma in mm.vmas.values():
            anon = vma.anon_vma
            if anon is not None:
                roots[anon.root.slot] = anon.root
                if anon.references <= 0 or anon.root.references <= 0:
                    wrong.append(f"the anon_vma of the vma at {vma.vm_start:#x} of mm {mm.serial} is free")
    for root in roots.values():
        if any(vma.anon_vma is None or vma.anon_vma.root is not root for vma in root.vmas.values()):
            wrong.append(f"anon_vma {root.slot} lists a vma that is not of its family")
    return wrong
