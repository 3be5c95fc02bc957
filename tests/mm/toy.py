"""Two small architectures and a kernel on them, so that the mm core is tested without any real machine.

``TOY``: three levels of sixteen entries, 4 KiB pages, a space of 16 MiB; every bit means yes. ``ODD``: the same
shape with 4-byte big-endian entries whose bits mean no (invalid, read-only, no-execute), so that an empty entry is
not zero. A test that runs on both has not assumed x86.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from polymmu.boot import Vectors, boot_kernel
from polymmu.description.model import KernelChoice, MachineDescription, TlbSpec, WalkCacheSpec
from polymmu.events import Observer
from polymmu.hardware.cpu import Cpu
from polymmu.hardware.entry import Access, EntryFormat, Field, Privilege, SoftEntry, WalkFault
from polymmu.hardware.layout import RadixLayout
from polymmu.hardware.ram import REFCOUNT
from polymmu.hardware.walk import RadixTranslation
from polymmu.hooks import ArchKernel, hookimpl
from polymmu.mm.fault import handle_mm_fault
from polymmu.mm.frames import lru_add_drain
from polymmu.mm.mm import activate, mm_alloc
from polymmu.mm.tables import find_entry, pfn_of, read_entry, read_pte, table_at
from polymmu.mm.vma import vma_alloc, vma_link
from polymmu.registry import Arch, resolve
from polymmu.structs import (
    VM_EXEC,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    AddressLimits,
    FaultInfo,
    File,
    mm_struct,
    vm_area_struct,
)

PAGE = 4096
PMD = 16 * PAGE
PUD = 16 * PMD
TOP = 16 * PUD
RW = VM_READ | VM_WRITE


class Toy:
    """The plugin: bits that mean yes, 8-byte little-endian entries."""

    order = "little"
    width = 8
    present = Field(1, 1)
    write = Field(2, 2)
    execute = Field(4, 4)
    accessed = Field(8, 8)
    dirty = Field(16, 16)
    soft = 1
    empty = 0
    none = refused = 32  # a page without rights, present to the core alone
    file = SoftEntry(mask=1 | 32 | 64, on=64, parts=(((12, 20),),))
    top = TOP

    @property
    def layout(self) -> RadixLayout:
        return RadixLayout((4, 4, 4), 12, ("pgd", "pmd", "pte"), (self.width,) * 3, frozenset({2}))

    @hookimpl
    def boot_registers(self) -> dict[str, int]:
        return {}

    @hookimpl
    def page_table_layout(self) -> RadixLayout:
        return self.layout

    @hookimpl
    def entry_format(self, level: int) -> EntryFormat:
        address = (1 << 32) - PAGE
        if level < 2:
            return EntryFormat(
                present=self.present,
                frame_mask=address,
                table_mask=address,
                empty=self.empty,
                table_bits=self.present.on | self.soft,
            )
        return EntryFormat(
            present=self.present,
            frame_mask=address,
            write=self.write,
            execute=self.execute,
            accessed=self.accessed,
            dirty=self.dirty,
            empty=self.empty,
            prot_none=Field(self.refused, self.refused),
            file=self.file,
        )

    @hookimpl
    def translation(self, section: Any, registers: Mapping[str, int]) -> RadixTranslation:
        codes = {
            (fault, access, privilege): int(fault) << 2 | int(access)
            for fault in WalkFault
            for access in Access
            for privilege in Privilege
        }
        formats = tuple(self.entry_format(level) for level in range(3))
        return RadixTranslation(layout=self.layout, formats=formats, byte_order=self.order, fault_codes=codes)

    @hookimpl
    def root_of(self, registers: Mapping[str, int]) -> int:
        return registers["root"]

    @hookimpl
    def address_limits(self) -> AddressLimits:
        return AddressLimits(
            task_size=self.top, mm_vm_size=self.top, mmap_base=self.top - PUD, stack_top=self.top, va_bits=24
        )

    @hookimpl
    def byte_order(self) -> str:
        return self.order

    @hookimpl
    def page_protections(self) -> tuple[int, ...]:
        return tuple(self.protection(flags) for flags in range(16))

    def protection(self, flags: int) -> int:
        if not flags & (VM_READ | VM_WRITE | VM_EXEC):
            return self.none
        value = self.dirty.clear(self.accessed.set(self.present.set(self.soft)))
        shared_store = flags & (VM_WRITE | VM_SHARED) == VM_WRITE | VM_SHARED
        value = self.write.set(value) if shared_store else self.write.clear(value)
        return self.execute.set(value) if flags & VM_EXEC else self.execute.clear(value)

    @hookimpl
    def have_move_pmd(self) -> bool:
        return True

    @hookimpl
    def decode_fault(self, code: int) -> FaultInfo:
        kinds = {WalkFault.NOT_PRESENT: "not_present", WalkFault.NON_CANONICAL: "non_canonical"}
        kind = kinds.get(WalkFault(code >> 2), "protection")
        return FaultInfo(access=Access(code & 3).name.lower(), kind=kind, user=True)


class Odd(Toy):
    """Bits that mean no, 4-byte big-endian entries; bit 0 is the core's own word for a page that is there."""

    order = "big"
    width = 4
    present = Field(0x400, 0, 0x400)
    write = Field(0x200, 0, 0x200)
    execute = Field(0x100, 0, 0x100)
    accessed = Field(0x80, 0, 0x80)
    dirty = Field(0x40, 0, 0x40)
    soft = 1
    empty = 0x400
    none = 0x400 | 0x200 | 0x100 | 0x40 | 1
    refused = 0x400 | 1
    file = SoftEntry(mask=0x400 | 3, on=0x400 | 2, parts=(((12, 20),),), empty=0x400)


TOY: Arch = resolve("toy", Toy())
ODD: Arch = resolve("odd", Odd())
ARCHES = {"toy": TOY, "odd": ODD}


def boot(
    arch: Arch = TOY,
    *,
    cpus: int = 1,
    memory: int = 4 << 20,
    observers: Sequence[Observer] = (),
    **choice: Any,
) -> ArchKernel:
    """A kernel on ``arch``; ``choice`` are keys of the machine file's ``kernel`` section."""
    description = MachineDescription(
        name="toy",
        arch=arch.name,
        cpus=cpus,
        memory=memory,
        kernel=KernelChoice(**choice),
        tlbs={"L1": TlbSpec(level=1, page_sizes=(PAGE,), entries=16, ways=4)},
        walk_caches={"PDE": WalkCacheSpec(level=1, entries=4, ways=4)},
        section=arch.ops.config_class()(),
    )
    kernel = boot_kernel(description, arch, observers)
    for cpu in kernel.cpus:
        cpu.vectors = Vectors(kernel)
    return kernel


def new_mm(kernel: ArchKernel, cpu: int = 0) -> mm_struct:
    """An address space that CPU ``cpu`` runs."""
    mm = mm_alloc(kernel)
    activate(kernel, kernel.cpus[cpu], mm)
    return mm


def add_vma(
    mm: mm_struct,
    start: int,
    end: int,
    flags: int = RW,
    *,
    file: File | None = None,
    pgoff: int | None = None,
) -> vm_area_struct:
    """A vma for [start, end), linked behind those below it; nothing is checked."""
    vma = vma_alloc(mm, start, end, flags, file=file, pgoff=pgoff)
    below = mm.vmas.bisect_left(start)
    vma_link(vma, mm.vmas.peekitem(below - 1)[1] if below else None)
    return vma


def running(mm: mm_struct) -> Cpu:
    """The CPU that ran ``mm`` last."""
    cpu: Cpu = mm.kernel.cpus[mm.last_cpu]
    return cpu


def store(mm: mm_struct, addr: int, data: bytes = b"x") -> None:
    running(mm).store(addr, data)


def load(mm: mm_struct, addr: int, size: int = 1) -> bytes:
    return running(mm).load(addr, size)


def touch(mm: mm_struct, addr: int, access: str = "store", *, kind: str = "not_present") -> None:
    """A page fault of ``mm``, without the hardware that would have caused it."""
    handle_mm_fault(mm.kernel, mm, addr, FaultInfo(access=access, kind=kind, user=True))


def pte_at(mm: mm_struct, addr: int) -> int:
    """The value of ``addr``'s pte; the empty entry where a table is missing."""
    ptep = find_entry(mm, addr)
    empty: int = mm.kernel.shape.pte.empty
    return read_pte(mm, ptep) if ptep >= 0 else empty


def pte_lock_held(mm: mm_struct, addr: int) -> bool:
    """Whether somebody holds the lock of the ptes around ``addr``; nobody does where they have no table."""
    ptep = find_entry(mm, addr)
    return ptep >= 0 and mm.kernel.variants.page_table_lock.lock_of(mm, table_at(mm, ptep)).held


def frame_at(mm: mm_struct, addr: int) -> int:
    """The frame mapped at ``addr``, -1 where none is."""
    shape = mm.kernel.shape
    pte = pte_at(mm, addr)
    return pfn_of(shape, pte) if shape.pte.is_mapped(pte) else -1


def live_tables(mm: mm_struct) -> set[tuple[int, int]]:
    """Every table below the root as (its level, first address it covers), found by walking all of the root."""
    found = set()
    below = [(0, mm.pgd, 0)]
    while below:
        level, table, base = below.pop()
        shape = mm.kernel.shape
        for index in range(mm.layout.entries_of(level)):
            value = read_entry(mm, level, table + index * mm.layout.entry_bytes[level])
            addr = base + (index << mm.layout.shifts[level])
            if value != shape.formats[level].empty:
                found.add((level + 1, addr))
                if level + 1 < mm.layout.pte_level:
                    below.append((level + 1, shape.formats[level].table_of(value), addr))
    return found


class Faults(Observer):
    """Faults as (address, kind, number)."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, int]] = []

    def fault(self, mm: Any, addr: int, kind: str, n: int) -> None:
        self.seen.append((addr, kind, n))


class GatherLog(Observer):
    """Flushes of gathers as (pages, tables), requests for batches, pages freed so far at each flush."""

    def __init__(self) -> None:
        self.flushes: list[tuple[int, int]] = []
        self.batches: list[bool] = []
        self.freed = 0
        self.freed_before_flush: list[int] = []

    def gather_flush(self, mm: Any, pages: int, tables: int) -> None:
        self.flushes.append((pages, tables))
        self.freed_before_flush.append(self.freed)

    def gather_batch(self, mm: Any, got: bool) -> None:
        self.batches.append(got)

    def pages_freed(self, n: int) -> None:
        self.freed += n


def held_frames(kernel: ArchKernel) -> int:
    """Frames that somebody holds, counted from the frames themselves."""
    counts = kernel.frames.table[REFCOUNT]
    return int(np.count_nonzero(counts))


def state(kernel: ArchKernel) -> SimpleNamespace:
    """What must be as before once everything that was made is gone. CPU pagevecs are drained first."""
    for cpu in kernel.cpus:
        kernel.sched.cpu = cpu
        lru_add_drain(kernel)
    kernel.sched.cpu = kernel.cpus[0]
    return SimpleNamespace(
        held=held_frames(kernel),
        free=kernel.free.free,
        mms=kernel.mms.live,
        vmas=kernel.vmas.live,
        mappings=kernel.mappings.live,
        anon_vmas=kernel.anon_vmas.live,
        on_lru=int(kernel.free.lru[2]),
        committed=kernel.vm_committed,
    )
