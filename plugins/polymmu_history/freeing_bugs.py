"""Known bugs of freeing page tables by vma list: each the step that it got wrong, named by its number in the corpus."""

from __future__ import annotations

from collections.abc import Mapping

from polymmu.mm.pgtables import WORD, VmaList
from polymmu.mm.vma import vmas_of
from polymmu.mm.zap import zap_page_range
from polymmu.structs import VM_HUGETLB, mmu_gather, vm_area_struct

__all__ = ["FREEING_BUGS"]


class DriverLeavesTables(VmaList):
    """14: where a driver refuses, only the ptes that it made are taken back. No vma ever covers their tables."""

    since = "mended 2005-04"
    wrong = "INV-PTALL"

    def driver_failed(self, vma: vm_area_struct, prev: vm_area_struct | None) -> bool:
        zap_page_range(vma, vma.vm_start, vma.vm_end - vma.vm_start)
        return False


class DriverUnaccountsTwice(VmaList):
    """15: the caller does not hear that the committed memory was given back with the tables."""

    since = "mended 2005-04"
    wrong = "INV-REF: committed memory falls below nothing"

    def driver_failed(self, vma: vm_area_struct, prev: vm_area_struct | None) -> bool:
        super().driver_failed(vma, prev)
        return False


class CeilingAsTop(VmaList):
    """16a: a ceiling in the first table is rounded to 0 and taken for the top: the next vma's table goes."""

    since = "mended 2005-04"
    wrong = "INV-REF: a neighbour loses its pages"

    def last_boundary(self, ceiling: int, span: int) -> int | None:
        return ceiling & -span


class EndAgainstCeiling(VmaList):
    """16b: ends are compared as they are, so that everything is above a ceiling of 0: the last table stays."""

    since = "mended 2005-04"
    wrong = "INV-PTALL"

    def is_above(self, end: int, ceiling: int) -> bool:
        return end > ceiling


class NoFloor(VmaList):
    """16c: a table that a vma below needs too goes with its pages."""

    since = "mended 2005-04"
    wrong = "INV-REF: a neighbour loses its pages"

    def first_table(self, addr: int, floor: int, span: int) -> int | None:
        return addr & -span


class WrapsAtTheTop(VmaList):
    """16d: in the last table below the top of the word, the next one up is at 0, and everything goes from there on."""

    since = "mended 2005-04"
    wrong = "everything from address 0 on is freed"

    def first_table(self, addr: int, floor: int, span: int) -> int | None:
        addr &= -span
        return addr if addr >= floor else (addr + span) & WORD


class TablesBeforeUnlinking(VmaList):
    """17: truncation still finds the vma, and goes down into tables that were freed."""

    since = "mended 2.6.15"
    wrong = "INV-WALK"

    def free_pgtables(self, tlb: mmu_gather, vma: vm_area_struct | None, floor: int, ceiling: int) -> None:
        super().free_pgtables(tlb, vma, floor, ceiling)
        for each in vmas_of(vma):
            super().unlink(each)

    def unlink(self, vma: vm_area_struct) -> None:
        """Later."""


class LooksAtTheWrongVma(VmaList):
    """18: before it joins the next vma it asks whether this one is huge."""

    since = "mended 2006-03"
    wrong = "huge entries are freed as tables, or the reverse"

    def is_apart(self, vma: vm_area_struct, following: vm_area_struct) -> bool:
        return bool(vma.vm_flags & VM_HUGETLB)


class UnscaledAddresses(VmaList):
    """19: a huge vma's tables are looked for where those of small pages would be."""

    since = "mended 2005-04"
    wrong = "INV-PTALL"

    def hugetlb_free_pgd_range(self, tlb: mmu_gather, addr: int, end: int, floor: int, ceiling: int) -> None:
        self.free_pgd_range(tlb, addr, end, floor, ceiling)


class DriverFreesWhatIsMapped(VmaList):
    """94: what a driver mapped before it ran out of tables stays mapped until the core gets round to it."""

    since = "mended 2024-09"
    wrong = "INV-TLB: another thread reads what is somebody else's by now"

    def remap_failed(self, vma: vm_area_struct, start: int, end: int) -> None:
        """Later, when the driver has given its frames back."""


FREEING_BUGS: Mapping[str, type[VmaList]] = {
    "bug-14": DriverLeavesTables,
    "bug-15": DriverUnaccountsTwice,
    "bug-16a": CeilingAsTop,
    "bug-16b": EndAgainstCeiling,
    "bug-16c": NoFloor,
    "bug-16d": WrapsAtTheTop,
    "bug-17": TablesBeforeUnlinking,
    "bug-18": LooksAtTheWrongVma,
    "bug-19": UnscaledAddresses,
    "bug-94": DriverFreesWhatIsMapped,
}
