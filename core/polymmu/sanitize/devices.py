"""INV-TLB, INV-PERM and INV-COW for secondary MMUs: what a device has entered, against what the kernel did.

A device may use an entry at any time, so one that leads to a frame is judged as soon as that is freed. What else a
change took (another page, the right to store) must be gone when the call that took it returns.
"""

from __future__ import annotations

from collections.abc import Iterator

from polymmu.mm.frames import compound_head
from polymmu.mm.secondary_mmu import DeviceEntry, SecondaryMmu
from polymmu.mm.tables import find_entry, pfn_of, read_pte
from polymmu.mm.vma import find_vma
from polymmu.sanitize.judge import Bench, Judge
from polymmu.structs import mm_struct

__all__ = ["DeviceEntries"]


class DeviceEntries(Judge):
    """Watches every secondary MMU of the kernel."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._accused: set[tuple[int, int]] = set()
        """(page, frame) of entries that were told already."""

    def pages_freed(self, n: int) -> None:
        refcount = self.kernel.frames.refcount
        for device in self.kernel.secondary_mmus:
            for page, entry in self._entries(device):
                if not refcount[compound_head(self.kernel, entry.pfn)]:
                    self._accuse("INV-TLB", page, entry, f"frame {entry.pfn} freed", "leads there")

    def mm_call_end(self, mm: mm_struct, name: str) -> None:
        if not mm.notifiers or not self.bench.is_settled(mm):
            return
        for device in self.kernel.secondary_mmus:
            if device.mm is mm:
                for page, entry in self._entries(device):
                    self._compare(mm, name, page, entry)

    def _entries(self, device: SecondaryMmu) -> Iterator[tuple[int, DeviceEntry]]:
        """Those that were not told already."""
        return (
            (page, entry) for page, entry in device.entries.items() if (page, entry.pfn) not in self._accused
        )

    def _compare(self, mm: mm_struct, call: str, page: int, entry: DeviceEntry) -> None:
        vma = find_vma(mm, page)
        if vma is not None and vma.huge_size and vma.vm_start <= page:
            return
        ptep, pte = find_entry(mm, page), self.kernel.shape.pte
        value = read_pte(mm, ptep) if ptep >= 0 else pte.empty
        if not pte.is_mapped(value) or pfn_of(self.kernel.shape, value) != entry.pfn:
            self._accuse(
                "INV-TLB", page, entry, f"{call} returns", "leads to a page that is not there any more"
            )
        elif entry.writable and not pte.write.test(value):
            name = "INV-COW" if call == "fork" else "INV-PERM"
            self._accuse(name, page, entry, f"{call} returns", "still lets stores through")

    def _accuse(self, invariant: str, page: int, entry: DeviceEntry, event: str, what: str) -> None:
        self._accused.add((page, entry.pfn))
        self.bench.tell(invariant, self.bench.now(event), f"a device's entry for {page:#x} {what}")
