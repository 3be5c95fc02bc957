"""The toy architectures with huge pages: an entry of the pmd maps 64 KiB, one of the pgd 1 MiB."""

from __future__ import annotations

import attrs

from polymmu import defaults
from polymmu.description.model import KernelChoice, MachineDescription, TlbSpec
from polymmu.errors import SyscallError, syscall_error
from polymmu.hardware.entry import EntryFormat
from polymmu.hardware.layout import RadixLayout
from polymmu.hooks import hookimpl
from polymmu.machine import Machine
from polymmu.registry import resolve
from polymmu.structs import AddressLimits, mm_struct, mmu_gather, vm_area_struct
from tests.mm.toy import PAGE, PMD, PUD, Odd, Toy

BIG, GIANT = PMD, PUD
EINVAL, ENOMEM, EBUSY = 22, 12, 16


class Huge(Toy):
    """``leaf``: the bit of an upper entry that maps a page. The rest is for tests of placing and flushing."""

    leaf = 64
    huge_ranges: tuple[tuple[int, int], ...] = ()
    refused_below = 0
    """Where this architecture will not prepare a range for huge pages."""
    flushed: list[tuple[int, int, int]]
    flushes = True
    freed: list[tuple[int, int, int, int]]

    def __init__(self) -> None:
        self.flushed, self.freed = [], []

    @property
    def layout(self) -> RadixLayout:
        return attrs.evolve(super().layout, leaf_levels=frozenset({0, 1, 2}))

    @hookimpl
    def entry_format(self, level: int) -> EntryFormat:
        pte = super().entry_format(2)
        if level == 2:
            return pte
        return attrs.evolve(
            pte,
            table_mask=pte.frame_mask,
            leaf_mask=self.leaf,
            leaves_alone=True,
            table_bits=self.present.on | self.soft,
        )

    @hookimpl
    def huge_page_sizes(self) -> tuple[int, ...]:
        return (BIG, GIANT)

    @hookimpl
    def address_limits(self) -> AddressLimits:
        return attrs.evolve(super().address_limits(), huge_ranges=self.huge_ranges)

    @hookimpl
    def is_hugepage_only_range(self, addr: int, length: int) -> bool:
        return any(addr < high and low < addr + length for low, high in self.huge_ranges)

    @hookimpl
    def prepare_hugepage_range(self, mm: mm_struct, addr: int, length: int, size: int) -> None:
        defaults.prepare_hugepage_range(mm, addr, length, size)
        if addr < self.refused_below:
            raise syscall_error(EBUSY, "a segment with small pages")

    @hookimpl
    def flush_tlb_range(self, vma: vm_area_struct, start: int, end: int) -> None:
        self.flushed.append((start, end, vma.vm_mm.kernel.free.free))
        if self.flushes:
            defaults.flush_tlb_range(vma, start, end)

    @hookimpl
    def hugetlb_free_pgd_range(self, tlb: mmu_gather, addr: int, end: int, floor: int, ceiling: int) -> None:
        self.freed.append((addr, end, floor, ceiling))
        defaults.hugetlb_free_pgd_range(tlb, addr, end, floor, ceiling)


class OddHuge(Huge):
    """Bits that mean no, 4-byte big-endian entries."""

    order, width = Odd.order, Odd.width
    present, write, execute = Odd.present, Odd.write, Odd.execute
    accessed, dirty = Odd.accessed, Odd.dirty
    soft, empty, none, refused = Odd.soft, Odd.empty, Odd.none, Odd.refused
    leaf = 0x800


PLUGINS: dict[str, type[Huge]] = {"toy": Huge, "odd": OddHuge}


def machine(plugin: Huge | None = None, *, memory: int = 8 << 20, cpus: int = 1) -> Machine:
    """A machine of ``plugin`` whose TLB keeps huge pages in fragments of base pages."""
    arch = resolve("toy", plugin or Huge())
    description = MachineDescription(
        name="toy",
        arch=arch.name,
        cpus=cpus,
        memory=memory,
        kernel=KernelChoice(),
        tlbs={"L1": TlbSpec(level=1, page_sizes=(PAGE,), entries=64, ways=4)},
        walk_caches={},
        section=arch.ops.config_class()(),
    )
    return Machine(description, arch)


def refusal(call: object, *args: object, **kwargs: object) -> int:
    """The errno with which ``call`` is refused, 0 if it is not."""
    assert callable(call)
    try:
        call(*args, **kwargs)
    except SyscallError as error:
        return error.errno or 0
    return 0
