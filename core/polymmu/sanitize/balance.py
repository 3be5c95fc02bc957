"""The balance at the end: when every program has gone and every file is closed, nothing is left."""

from __future__ import annotations

import numpy as np

from polymmu.hardware.ram import FLAGS, MAPCOUNT, REFCOUNT
from polymmu.hooks import ArchKernel
from polymmu.mm.frames import lru_add_drain
from polymmu.structs import PG_RESERVED

__all__ = ["check_balance", "frames_held"]


def frames_held(kernel: ArchKernel) -> int:
    """Frames that somebody holds, other than those that are never allocated."""
    table = kernel.frames.table[:, : kernel.free.bump]
    return int(np.count_nonzero((table[REFCOUNT] > 0) & (table[FLAGS] & PG_RESERVED == 0)))


def check_balance(kernel: ArchKernel, held: int | None = None) -> list[str]:
    """What is left of programs and files, a line each; nothing should be.

    ``held``: the frames that were held before the first of them came (``frames_held``); without it frames of page
    tables are not judged. The pagevecs are drained first.
    """
    sched = kernel.sched
    outer = sched.cpu
    for cpu in kernel.cpus:
        sched.cpu = cpu
        lru_add_drain(kernel)
    sched.cpu = outer
    left = [
        f"{count} {what} left"
        for what, count in (
            ("mms", kernel.mms.live - 1),
            ("vmas", kernel.vmas.live),
            ("files", kernel.mappings.live),
            ("anon_vmas", kernel.anon_vmas.live),
            ("pages committed", kernel.vm_committed),
            ("slots of the swap area", len(kernel.swap.swap_map) if kernel.swap is not None else 0),
            ("locked pages", sum(lock.held for lock in kernel.page_locks.values())),
        )
        if count
    ]
    mapped = np.flatnonzero(kernel.frames.table[MAPCOUNT, : kernel.free.bump])
    if len(mapped):
        left.append(f"{len(mapped)} frames still count ptes, the first is {mapped[0]}")
    if held is not None and frames_held(kernel) != held:
        left.append(f"{frames_held(kernel) - held} frames are held that were not")
    free = kernel.frames.count - int(np.count_nonzero(kernel.frames.table[REFCOUNT, : kernel.free.bump] > 0))
    if free != kernel.free.free:
        left.append(f"{kernel.free.free} frames count as free, {free} have no holder")
    if sched.preempt_count:
        left.append(f"preemption is off {sched.preempt_count} times")
    left += [f"interrupts are off on CPU {cpu.index}" for cpu in kernel.cpus if not cpu.interrupts_enabled]
    if sched.lockdep is not None:
        left += [f"{lock.name} held since {place}" for lock, place in sched.lockdep.held()]
    return left
