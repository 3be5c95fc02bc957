"""Contexts: the numbers that tag TLB entries, handed out in versions.

An mm's context is a number below a version. When the numbers run out, a new version begins: every context becomes
invalid at once, the CPUs get new numbers for what they run, and the others when they are next run. Number 0 is the
kernel's. A number that comes back may still be in a TLB with its former owner's pages, so a CPU demaps it before it
runs an mm under a number that it has not had there: ``mm.cpu_mask`` says which CPUs have. For that the mask must be
emptied when an mm gets another number, as Linux does from 4.12 on; the releases modelled here forgot it.

Sources: Linux 2.6.11 to 3.0 ``mmu_context_64.h``, ``mm/init.c`` (get_new_mmu_context), ``smp_64.c``.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from polymmu.arch import ArchKernel, Cpu, UserMistake, mm_struct
from polymmu_sparc64.tsb import Tsb, load_tsbs

TLB_BATCH_NR = 192
FIRST_VERSION = 1


@attrs.define(eq=False)
class Context:
    """An mm's context. ``version`` 0: none yet."""

    version: int = 0
    number: int = 0
    tsb: Tsb | None = None
    huge_tsb: Tsb | None = None


@attrs.define(eq=False)
class TlbBatch:
    """A CPU's: addresses ``vaddrs[:nr]`` of ``mm`` whose live ptes changed and which no TLB has forgotten yet."""

    mm: mm_struct | None = None
    nr: int = 0
    vaddrs: NDArray[np.uint64] = attrs.field(factory=lambda: np.empty(TLB_BATCH_NR, dtype=np.uint64))


@attrs.define(eq=False)
class Sparc64State:
    """The machine's. ``taken``: a byte per number. Numbers are looked for upwards from ``last``."""

    taken: bytearray
    batches: list[TlbBatch]
    version: int = FIRST_VERSION
    last: int = 1


def boot(kernel: ArchKernel, bits: int) -> None:
    """Make the machine's state. Numbers 0 and 1 are reserved."""
    if 1 << bits <= len(kernel.cpus) + 1:
        raise UserMistake(
            f"{1 << bits} context numbers are too few for {len(kernel.cpus)} CPUs; give more context_bits",
            place="sparc64.context_bits",
        )
    taken = bytearray(1 << bits)
    taken[0:2] = b"\1\1"
    kernel.arch_state = Sparc64State(taken, [TlbBatch() for _ in kernel.cpus])


def state_of(kernel: ArchKernel) -> Sparc64State:
    """The machine's state."""
    state: Sparc64State = kernel.arch_state
    return state


def is_valid(mm: mm_struct) -> bool:
    """Whether the mm has a number of the running version."""
    version: int = mm.context.version
    return version == state_of(mm.kernel).version


def get_new_mmu_context(mm: mm_struct) -> bool:
    """Give ``mm`` a number that no mm has; True where a new version had to begin for it."""
    state = state_of(mm.kernel)
    number = state.taken.find(0, state.last + 1)
    if number < 0:
        number = state.taken.find(0, 1, state.last + 1)
    wrapped = number < 0
    if wrapped:
        state.version += 1
        state.taken[:] = bytes(len(state.taken))
        state.taken[0] = number = 1
    state.taken[number] = 1
    state.last = number
    mm.context.version, mm.context.number = state.version, number
    mm.cpu_mask = 0
    return wrapped


def load_context(cpu: Cpu, mm: mm_struct) -> None:
    """Let ``cpu`` translate for ``mm``, whose context is valid; a number it has not had there is demapped first."""
    kernel: ArchKernel = mm.kernel
    context: Context = mm.context
    cpu.load_root(mm.pgd, asid=context.number, space=mm.serial)
    load_tsbs(cpu, mm)
    if not mm.cpu_mask >> cpu.index & 1:
        mm.cpu_mask |= 1 << cpu.index
        cpu.invalidate(asid=context.number)
        kernel.sched.spend(kernel.description.costs.flush_all, "flush")


def switch_mm(cpu: Cpu, following: mm_struct) -> None:
    """Run ``following`` on ``cpu``, which keeps the previous mm's translations under their number."""
    kernel: ArchKernel = following.kernel
    if following is kernel.init_mm:  # number 0, and no TSB
        cpu.load_root(following.pgd, space=following.serial)
        load_tsbs(cpu, following)
        return
    if not is_valid(following) and get_new_mmu_context(following):
        for other in kernel.cpus:  # a new version began: new numbers for what the other CPUs run
            mm = kernel.active_mm[other.index]
            if other is not cpu and mm is not None and mm is not kernel.init_mm:
                if not is_valid(mm):
                    get_new_mmu_context(mm)
                load_context(other, mm)
                kernel.sched.spend(kernel.description.costs.ipi, "ipi")
    load_context(cpu, following)


def release(mm: mm_struct) -> None:
    """The mm's number may be given to another."""
    if is_valid(mm):
        state_of(mm.kernel).taken[mm.context.number] = 0
