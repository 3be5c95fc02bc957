"""Storage keys: where this architecture keeps what others keep in a pte.

Every 4 KiB frame has a key; a CPU sets R (referenced) in it when it loads a translation, and C (changed) at the first
store through one (``dat``). RRBE resets R; C is read and reset with the whole key (ISKE, SSKE). PoP ch. 3, "Storage
Key".

What TLBs still hold: an entry that was loaded before R was reset lets its page be used without R being set again,
until it is dropped; the same is true of an accessed bit elsewhere. C is reset only when the last mapping of its frame
has gone, and with it every TLB entry, so no store goes unnoticed. A large page has change-recording override, and
its frames' C is not set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polymmu.arch import MMU, ArchKernel, Kernel, hookimpl, vm_area_struct
from polymmu_s390.dat import CHANGED, KEYS, REFERENCED


def power_on(kernel: Kernel[Any]) -> None:
    """Give the machine its keys, a word each, all zero, and tell the CPUs where they are."""
    kernel.arch_state = np.zeros(kernel.frames.count, dtype=np.int64)
    for cpu in kernel.cpus:
        cpu.mmu[KEYS - MMU] = kernel.arch_state.ctypes.data


def keys_of(kernel: Kernel[Any]) -> npt.NDArray[np.int64]:
    """The machine's storage keys, by frame."""
    keys: npt.NDArray[np.int64] = kernel.arch_state
    return keys


def reset(kernel: Kernel[Any], pfn: int, bit: int) -> bool:
    """Clear ``bit`` of a frame's key; whether it was set. What is not storage has no key."""
    keys = keys_of(kernel)
    was = pfn < len(keys) and bool(keys[pfn] & bit)
    if was:
        keys[pfn] &= ~bit
    return was


@hookimpl
def test_and_clear_young(vma: vm_area_struct, ptep: int, n: int) -> int:
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    pte, width = kernel.shape.pte, mm.layout.entry_bytes[-1]
    values = [kernel.ram.read_entry(entry, width, "big") for entry in range(ptep, ptep + n * width, width)]
    pfns = [pte.frame_of(value) >> mm.layout.page_shift for value in values if pte.present.test(value)]
    return sum(reset(kernel, pfn, REFERENCED) for pfn in pfns)


@hookimpl
def page_test_and_clear_dirty(kernel: Kernel[Any], pfn: int) -> bool:
    return reset(kernel, pfn, CHANGED)
