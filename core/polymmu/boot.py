"""From a description to a kernel that runs: its shape, RAM, CPUs and allocators, and what enters it.

A CPU enters the kernel through its page-fault vector, a driver through the program that a task runs. Nothing here
is an algorithm, and nothing is a user's to hold (``machine``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polymmu import variants
from polymmu.description.model import MachineDescription
from polymmu.errors import SegmentationFault
from polymmu.events import Events, Observer
from polymmu.hardware.cpu import NOTHING_AHEAD, Cpu, Upcoming
from polymmu.hardware.entry import EntryFormat
from polymmu.hardware.ram import Frames, Ram
from polymmu.hooks import ArchKernel
from polymmu.mm import fault as mm_fault
from polymmu.mm import frames
from polymmu.mm import mm as mm_life
from polymmu.mm.own_ops import OwnOps
from polymmu.registry import HOOKS, Arch, replaced
from polymmu.sched.driver import Sched
from polymmu.sched.exploring import ExploringSched
from polymmu.sched.timed import TimedSched
from polymmu.sched.user import UserCode
from polymmu.structs import (
    Kernel,
    Shape,
    mm_struct,
)

__all__ = ["DRIVERS", "Program", "TimedVectors", "Vectors", "boot_kernel", "shape_of"]

DRIVERS = ("solo", "timed")


def shape_of(arch: Arch, section: Any) -> Shape:
    """Ask an architecture everything about geometry, once."""
    ops = arch.ops
    registers = ops.boot_registers(section)
    layout = ops.page_table_layout(section)
    formats = tuple(ops.entry_format(section, registers, level) for level in range(layout.levels))
    protections = ops.page_protections(section, registers)
    huge_formats: dict[int, EntryFormat] = {}
    huge_protections: dict[int, tuple[int, ...]] = {}
    for size in ops.huge_page_sizes(section):
        format = ops.huge_entry_format(section, registers, size)
        if format is None:
            format = formats[layout.shifts.index(size.bit_length() - 1)]
        huge_formats[size] = format
        own = ops.huge_protections(section, registers, size)
        huge_protections[size] = (
            tuple(bits | format.leaf_mask for bits in protections) if own is None else own
        )
    return Shape(
        layout=layout,
        formats=formats,
        limits=ops.address_limits(section),
        protections=protections,
        huge_page_sizes=tuple(huge_formats),
        huge_formats=huge_formats,
        huge_protections=huge_protections,
        byte_order=ops.byte_order(section),
        registers=registers,
    )


def boot_kernel(
    description: MachineDescription, arch: Arch, observers: Sequence[Observer] = (), driver: str = "solo"
) -> ArchKernel:
    """A kernel with its RAM, CPUs and allocators, no process yet. The arch has been asked for its shape.

    ``driver``: ``solo``, ``timed`` or ``exploring``, who says what runs when.
    """
    section = description.section
    shape = shape_of(arch, section)
    translation = arch.ops.translation(section, shape.registers)
    ram = Ram(description.memory)
    page_frames = Frames(description.memory >> shape.layout.page_shift, shape.layout.page_size)
    cpus = tuple(
        Cpu(index, ram, page_frames, description.tlbs, description.walk_caches, translation, description.seed)
        for index in range(description.cpus)
    )
    drivers: dict[str, Callable[[], Sched]] = {
        "solo": lambda: Sched(cpus),
        "timed": lambda: TimedSched(cpus, description.seed),
        "exploring": lambda: ExploringSched(cpus),
    }
    kernel: ArchKernel = Kernel(
        description=description,
        ram=ram,
        frames=page_frames,
        free=frames.boot_free_frames(page_frames, len(cpus)),
        cpus=cpus,
        sched=drivers[driver](),
        events=Events(),
        ops=arch.ops,
        shape=shape,
        active_mm=[None] * len(cpus),
    )
    kernel.sched.preemptible = description.kernel.preempt
    kernel.variants = variants.chosen(kernel)
    kernel.ops = _with_steps_replaced(arch, kernel.variants.ops).ops
    mm_life.boot(kernel)
    kernel.events = Events(observers)
    return kernel


def _with_steps_replaced(arch: Arch, ops: OwnOps) -> Arch:
    """``arch`` with each hook that ``ops`` has a method for answered by that."""
    for hook in HOOKS:
        if hasattr(ops, hook):
            arch = replaced(arch, hook, getattr(ops, hook))
    return arch


class Vectors:
    """Where hardware enters the kernel: the page-fault vector."""

    def __init__(self, kernel: ArchKernel) -> None:
        self.kernel = kernel
        self.cost = kernel.description.costs.fault

    def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
        """Handle a fault on ``cpu``; returns when the access may be retried, raises SegmentationFault if not."""
        kernel = self.kernel
        kernel.sched.cpu = cpu
        info = kernel.ops.decode_fault(code)
        mm = kernel.active_mm[cpu.index]
        kernel.sched.spend(self.cost, "fault")
        if mm is None or mm is kernel.init_mm or kernel.lazy >> cpu.index & 1:
            raise SegmentationFault(va, info.access, "this CPU runs no program; call switch_mm first")
        mm_fault.handle_mm_fault(kernel, mm, va, info, upcoming)


class TimedVectors(Vectors):
    """The same under the timed driver, where other CPUs and tasks go on while a fault is handled."""

    def __init__(self, kernel: ArchKernel, programs: Sequence[UserCode]) -> None:
        super().__init__(kernel)
        self.programs = programs

    def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
        """Handle this one fault: what the program will touch next may be another one's to change by then."""
        handle = super().fault
        self.programs[cpu.index].trap(lambda: handle(cpu, code, va, _nothing_upcoming))


def _nothing_upcoming(low: int, high: int, limit: int) -> NDArray[np.uint64]:
    return NOTHING_AHEAD


class Program:
    """What a task of the machine runs: ``body``, in the address space ``mm`` (None: a kernel thread).

    A task is a user of its mm, as each thread is in Linux: the last one to end takes the mm down.
    """

    def __init__(self, kernel: ArchKernel, cpu: Cpu, mm: mm_struct | None, body: Callable[[], None]) -> None:
        self.kernel = kernel
        self.cpu = cpu
        self.mm: mm_struct | None = None
        self.body = body
        self._hold(mm)

    def _hold(self, mm: mm_struct | None) -> None:
        self.mm = mm
        if mm is not None:
            self.kernel.sched.atomic()
            mm.mm_users += 1

    def run(self) -> None:
        """The whole life of the task."""
        self.body()
        self.use(None)

    def enter(self) -> None:
        """This task runs now on a CPU that another one had: switch the mm, or borrow the one that is there."""
        if self.mm is not None:
            mm_life.activate(self.kernel, self.cpu, self.mm)
            return
        mm_life.enter_lazy_tlb(self.kernel, self.cpu)

    def use(self, mm: mm_struct | None) -> None:
        """Run in ``mm`` from now on; None: in nobody's, as a kernel thread or after exit."""
        old = self.mm
        if mm is old:
            return
        self._hold(mm)
        self.enter()
        if old is not None:
            mm_life.mmput(old)
