"""What a check works at: an architecture on a small machine of two CPUs, built afresh for each use.

A ``Bench`` is a value: an arch and a machine description, and what can be derived from them. ``bench.world()``
builds a machine; building one takes a millisecond, so no check shares one with another. ``World`` adds to the
machine what checks keep asking: programs on both CPUs, whether an access is allowed, what stands in the tables.
"""

from __future__ import annotations

import functools
import unittest
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from polymmu import registry
from polymmu.boot import shape_of
from polymmu.description.load import installed_machines
from polymmu.description.model import MachineDescription
from polymmu.errors import SegmentationFault, UserMistake
from polymmu.events import Events, Observer
from polymmu.hardware.ram import REFCOUNT
from polymmu.machine import CpuHandle, Machine, Mm
from polymmu.mm.frames import lru_add_drain
from polymmu.mm.tables import find_entry, format_of, pfn_of, read_pte
from polymmu.registry import Arch
from polymmu.structs import Shape, mm_struct, vm_area_struct

__all__ = ["Bench", "NotApplicable", "Window", "World", "require"]

SMALL = ("cpus=2", "memory=256 MiB")
LARGEST = 256 << 20
ACCESSES = ("load", "store", "fetch")


class NotApplicable(unittest.SkipTest):
    """This architecture lacks what the check is about; the text says what."""


def require(condition: bool, text: str) -> None:
    """Fail the running check unless ``condition`` holds. Not ``assert``: that vanishes under ``python -O``."""
    if not condition:
        raise AssertionError(text)


@attrs.frozen
class Window:
    """A part [start, end) of the address space that small pages may use: an edge of it, or of a hole."""

    name: str
    start: int
    end: int


@attrs.frozen(eq=False)
class Bench:
    """An architecture and the machine it is checked on.

    What it can do is derived from its answers: ``huge_sizes``, ``has_accessed``, ``holes``; what an arch of its
    release did wrong it declares itself (hook ``deviations``).
    """

    arch: Arch
    description: MachineDescription

    @classmethod
    def of(cls, arch: str, machine: str = "", sets: Sequence[str] = ()) -> Bench:
        """The installed ``arch`` on ``machine``: an installed name or a file; by default the arch's plain one.

        ``sets`` change the machine as ``--set`` does. Raises UserMistake.
        """
        resolved = registry.arch_named(arch)
        description, found = Machine.describe(machine or plain_machine(arch), sets=[*SMALL, *sets])
        if found.name != arch:
            raise UserMistake(f"machine '{machine}' is a {found.name}, not a {arch}; name one of that arch")
        return cls(resolved, description)

    def with_hook(self, hook: str, function: Any) -> Bench:
        """The same bench with one hook answered by ``function``."""
        return attrs.evolve(self, arch=registry.replaced(self.arch, hook, function))

    @property
    def section(self) -> Any:
        """The arch's own section of the machine description."""
        return self.description.section

    @functools.cached_property
    def shape(self) -> Shape:
        """The arch's answers about geometry."""
        return shape_of(self.arch, self.section)

    @functools.cached_property
    def deviations(self) -> tuple[str, ...]:
        """What this release of the architecture is declared to do wrong."""
        return self.arch.ops.deviations(self.section)

    @functools.cached_property
    def huge_sizes(self) -> tuple[int, ...]:
        """Huge page sizes that can be tried without moving gigabytes about."""
        return tuple(size for size in self.shape.huge_page_sizes if size <= LARGEST)

    @property
    def has_accessed(self) -> bool:
        """Whether somebody notes which pages were used."""
        return self.shape.pte.accessed is not None or "test_and_clear_young" in self.arch.implementations

    def world(self, *observers: Observer, cpus: int = 2, memory: int = 0, **choices: Any) -> World:
        """A new machine with at least ``memory`` bytes. ``choices``: keys of the machine file's ``kernel`` section."""
        description = attrs.evolve(
            self.description,
            cpus=cpus,
            memory=max(memory, self.description.memory),
            kernel=attrs.evolve(self.description.kernel, **choices),
        )
        return World(self, description, observers)

    def windows(self) -> list[Window]:
        """Both ends of each part of the address space between holes, and a boundary of the top table inside it."""
        shape, layout = self.shape, self.shape.layout
        limits = shape.limits
        low = max(limits.first_user_address, layout.page_size)
        edges = [low]
        for start, end in sorted(limits.holes):
            edges += [start, end]
        edges.append(limits.task_size)
        half = 2 * layout.span_of(layout.pmd_level)
        top_span = layout.span_of(0)
        mm = self.world().machine.new_mm().struct
        found = []
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            inner = (start + 2 * top_span) & -top_span
            for name, low, high in (
                ("bottom", start, start + 2 * half),
                ("boundary", inner - half, inner + half),
                ("top", end - 2 * half, end),
            ):
                low, high = max(start, low) & -layout.page_size, min(end, high)  # noqa: PLW2901
                if low < high and not self.arch.ops.is_hugepage_only_range(mm, low, high - low):
                    found.append(Window(f"{name} of {start:#x}-{end:#x}", low, high))
        require(bool(found), "no part of the address space takes small pages")
        return found


def plain_machine(arch: str) -> str:
    """The installed machine called as the arch, else the first one of that arch."""
    names = [row.name for row in installed_machines() if row.arch == arch]
    if not names:
        raise UserMistake(
            f"no machine of architecture '{arch}' is installed; name a machine file (--machine)"
        )
    return arch if arch in names else names[0]


class World:
    """A machine of ``bench``, and what checks ask of it."""

    def __init__(self, bench: Bench, description: MachineDescription, observers: Sequence[Observer]) -> None:
        self.bench = bench
        self.machine = Machine(description, bench.arch)
        self.kernel = self.machine.kernel
        self.kernel.events = Events((self.machine.counters, self.machine.flushes, *observers))
        self.page = self.machine.page_size

    # --- programs and accesses
    @property
    def cpus(self) -> tuple[CpuHandle, ...]:
        """The machine's CPUs."""
        return self.machine.cpus

    def program(self, *cpus: int) -> Mm:
        """An address space that the CPUs of these numbers run; without any, all of them."""
        mm = self.machine.new_mm()
        self.run(mm, *cpus)
        return mm

    def run(self, mm: Mm, *cpus: int) -> None:
        """``mm`` runs on these CPUs from now on (without any: on all)."""
        for index in cpus or range(len(self.cpus)):
            self.cpus[index].switch_mm(mm)

    def allows(self, cpu: int, access: str, va: int) -> bool:
        """Whether CPU ``cpu`` may make this access of one byte; a store stores what it finds, or zero."""
        handle = self.cpus[cpu]
        try:
            if access == "load":
                handle.load(va, 1)
            elif access == "fetch":
                handle.fetch(va, 1)
            else:
                handle.store(va, b"\0")
        except SegmentationFault:
            return False
        return True

    # --- what the core knows
    def vma(self, mm: Mm, va: int) -> vm_area_struct:
        """The mapping that holds ``va``."""
        for vma in mm.struct.vmas.values():
            if vma.vm_start <= va < vma.vm_end:
                found: vm_area_struct = vma
                return found
        raise AssertionError(f"nothing is mapped at {va:#x}")

    def ptep(self, mm: Mm, va: int) -> int:
        """Physical address of ``va``'s pte; -1 where a table is missing."""
        return find_entry(mm.struct, va)

    def pte(self, mm: Mm, va: int) -> int:
        """Value of ``va``'s pte."""
        return read_pte(mm.struct, self.ptep(mm, va))

    def frame(self, mm: Mm, va: int) -> int:
        """Number of the frame that ``va``'s pte maps."""
        return pfn_of(self.kernel.shape, self.pte(mm, va))

    def settle(self) -> None:
        """Drain what CPUs keep back, so that counts of frames mean something."""
        for cpu in self.kernel.cpus:
            self.kernel.sched.cpu = cpu
            lru_add_drain(self.kernel)
        self.kernel.sched.cpu = self.kernel.cpus[0]

    def held(self) -> dict[str, int]:
        """What somebody holds: frames, address spaces, mappings, and elements of the arch's own state."""
        self.settle()
        kernel = self.kernel
        return {
            "frames": int(np.count_nonzero(kernel.frames.table[REFCOUNT])),
            "mms": kernel.mms.live,
            "vmas": kernel.vmas.live,
            "mappings": kernel.mappings.live,
            "anon_vmas": kernel.anon_vmas.live,
        }

    def check_quiet(self, when: str) -> None:
        """No CPU holds a translation of what it runs that the tables do not support, and the audit missed none."""
        for cpu in self.kernel.cpus:
            mm = self.kernel.active_mm[cpu.index]
            if mm is not None and mm is not self.kernel.init_mm:
                stale = cpu.count_stale(None, cpu.root, 0, 0)
                require(not stale, f"{when}: cpu {cpu.index} still holds {stale} stale translations")
        for call, tally in self.machine.flushes.by_call.items():
            require(not tally.missing, f"{when}: {call} left stale translations {tally.missing} times")


# ------------------------------------------------------------------ tables as they stand in memory
Path = tuple[int, ...]
"""A table by the indices that lead to it from the root; their number is its level."""


def tables_in_memory(mm: mm_struct) -> set[Path]:
    """Every table below the root, found by reading all tables from the root on."""
    return set(_below(mm, 0, mm.pgd, ()))


def _below(mm: mm_struct, level: int, table: int, path: Path) -> Iterator[Path]:
    layout = mm.layout
    format = format_of(mm, level)
    width = layout.entry_bytes[level]
    order = mm.kernel.shape.byte_order
    raw = mm.kernel.ram.read(table, layout.table_bytes_of(level))
    entries = np.frombuffer(raw, dtype=np.dtype(f"u{width}").newbyteorder(">" if order == "big" else "<"))
    for index in np.flatnonzero(entries != entries.dtype.type(format.empty)).tolist():
        value = int(entries[index])
        if value & format.leaf_mask:
            continue
        yield (*path, index)
        if level + 1 < layout.pte_level:
            yield from _below(mm, level + 1, format.table_of(value), (*path, index))


def tables_for(mm: mm_struct, start: int, end: int) -> set[Path]:
    """Every table that some page of [start, end) needs, worked out page table by page table."""
    layout = mm.layout
    step = layout.span_of(layout.pmd_level)
    found: set[Path] = set()
    for va in (*range(start, end, step), end - 1):
        path: Path = ()
        for level in range(layout.pte_level):
            path = (*path, layout.index_of(level, va))
            found.add(path)
    return found
