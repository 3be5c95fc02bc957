"""Address-space numbers as Linux hands them out on RISC-V (5.13): one number per mm on all CPUs, in versions.

``mm.context.id`` is the version of the machine's numbering above the number itself. When the numbers run out, the
version moves on, every number is free again but those that CPUs are running with, and each CPU empties its TLBs
before it runs anything else. An mm of an older version gets a number of the present one when it is switched to.

Numbers are used where there are more than twice as many as CPUs. Where they are not, each switch empties the TLBs.
"""

from __future__ import annotations

import attrs

from polymmu.arch import ArchKernel, Cpu, mm_struct


@attrs.define(eq=False)
class Context:
    """An mm's: 0 is of no version, so that the first switch to a new mm gives it a number."""

    id: int = 0


@attrs.define(eq=False)
class Asids:
    """The machine's."""

    bits: int
    version: int = 0
    used: set[int] = attrs.field(factory=set[int])
    """Numbers of this version that somebody has; only ever asked for membership."""
    next: int = 1
    """Where the search for a free one goes on; 0 belongs to the kernel."""
    active: list[int] = attrs.field(factory=list[int])
    """Per CPU: the id it runs with."""
    reserved: list[int] = attrs.field(factory=list[int])
    """Per CPU: the id it ran with when the version moved on."""
    stale: int = 0
    """CPUs that must empty their TLBs before they run another mm."""

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return 1 << self.bits


def boot(kernel: ArchKernel, bits: int) -> None:
    """Set the numbering up, once per machine."""
    if kernel.arch_state is None:
        none = [0] * len(kernel.cpus)
        asids = Asids(bits=bits, active=none.copy(), reserved=none)
        asids.version = asids.count
        kernel.arch_state = asids


def asids_of(kernel: ArchKernel) -> Asids:
    """The machine's numbering."""
    asids: Asids = kernel.arch_state
    return asids


def in_use(kernel: ArchKernel) -> bool:
    """Whether translations are told apart by number on this machine."""
    return asids_of(kernel).count > 2 * len(kernel.cpus)


def asid_of(mm: mm_struct) -> int:
    """The number that ``mm`` has, or had last."""
    context: Context = mm.context
    return context.id & asids_of(mm.kernel).count - 1


def switch(cpu: Cpu, prev: mm_struct | None, following: mm_struct) -> None:
    """Load ``following``'s root, with its number where there are numbers (switch_mm).

    With numbers a CPU stays in ``cpu_mask`` when it leaves an mm: its TLBs still hold that mm's translations.
    """
    kernel: ArchKernel = following.kernel
    kernel.sched.atomic()
    following.cpu_mask |= 1 << cpu.index
    if not in_use(kernel):
        cpu.load_root(following.pgd, space=following.serial)
        cpu.invalidate(asid=None, include_global=True, walk_caches="all")
        if prev is not None and prev is not following:
            kernel.sched.atomic()
            prev.cpu_mask &= ~(1 << cpu.index)
        return
    asids = asids_of(kernel)
    context: Context = following.context
    if context.id & -asids.count != asids.version:
        context.id = new_id(kernel, asids, context.id)
    asids.active[cpu.index] = context.id
    cpu.load_root(following.pgd, asid=context.id & asids.count - 1, space=following.serial)
    if asids.stale >> cpu.index & 1:
        asids.stale &= ~(1 << cpu.index)
        cpu.invalidate(asid=None, include_global=True, walk_caches="all")


def new_id(kernel: ArchKernel, asids: Asids, old: int) -> int:
    """A number of the present version: the old one where that is possible, else the next free one."""
    number = old & asids.count - 1
    if old:
        renewed = asids.version | number
        if old in asids.reserved:
            asids.reserved = [renewed if each == old else each for each in asids.reserved]
            return renewed
        if number not in asids.used:
            asids.used.add(number)
            return renewed
    free = next_free(asids)
    if not free:
        move_on(kernel, asids)
        free = next_free(asids)
    asids.used.add(free)
    asids.next = free + 1
    return asids.version | free


def next_free(asids: Asids) -> int:
    """The first number that nobody has, from where the last search ended; 0 where there is none above."""
    return next((number for number in range(asids.next, asids.count) if number not in asids.used), 0)


def move_on(kernel: ArchKernel, asids: Asids) -> None:
    """Begin the next version: only what CPUs run with stays taken."""
    asids.version += asids.count
    # A CPU that has not switched since the last time still holds the number it had then.
    asids.reserved = [
        active or reserved for active, reserved in zip(asids.active, asids.reserved, strict=True)
    ]
    asids.active = [0] * len(kernel.cpus)
    asids.used = {each & asids.count - 1 for each in asids.reserved if each}
    asids.stale = (1 << len(kernel.cpus)) - 1
    asids.next = 1
