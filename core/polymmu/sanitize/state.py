"""What page tables and counters say of each other: INV-REF, INV-RMAP, INV-PTALL, INV-TRUNC, INV-COW, INV-DIRTY.

All tables of all mms are read, when nobody is in the middle of changing one, and everything that is kept twice is
compared: ptes against mapcount and rss, tables against their number, file pages against the page cache and i_mmap.
A look costs in proportion to what is mapped, so the next one waits until about as much work was done.

Not judged: reference counts from above (who else holds a page is not written anywhere; the balance at the end shows
it). Of a driver's frames nothing is counted; they must not be free.

First reading: ``State.look``, ``_vma``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polymmu.hardware.cpu import Cpu
from polymmu.hardware.entry import Field
from polymmu.hardware.ram import FLAGS, INDEX, MAPCOUNT, MAPPING, REFCOUNT
from polymmu.hardware.scans import read_run
from polymmu.mm.hugetlb import format_in, head_of
from polymmu.mm.tables import entries_in, format_of, read_pte, read_ptes, table_runs
from polymmu.mm.vma import VM_RIGHTS, linear_index, vma_pages
from polymmu.sanitize.cached_kernels import dirty_frames
from polymmu.sanitize.judge import Bench, Judge
from polymmu.sanitize.rmap import is_in_its_file, not_found, wrong_families
from polymmu.sanitize.swapped import check_swap
from polymmu.sanitize.violation import Happened
from polymmu.structs import (
    PG_ANON,
    PG_CACHE,
    PG_DIRTY,
    PG_RESERVED,
    VM_ACCOUNT,
    VM_NONLINEAR,
    VM_PFNMAP,
    VM_SHARED,
    address_space,
    mm_struct,
    vm_area_struct,
)

__all__ = ["State"]

Pfns = NDArray[np.int64]
STORED = 4096
"""Frames that one TLB look may find."""
PATIENCE = 512
"""Pages' worth of work after which a look is always worth it."""


class State(Judge):
    """Reads all tables now and then, and always at the end. See the top of the module."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.stored: dict[int, tuple[int, Happened]] = {}
        """File frame that a TLB let a store through to, while it was not known to be dirty -> its generation, when."""
        self.looks = 0
        self.eager = True
        """Whether to look also before the end."""
        self._astray = 0
        """CPUs that frames were freed or cleaned behind the backs of: lazy then, they forget before they run on."""
        self._out = np.empty(STORED, dtype=np.int64)
        self._frames = self.kernel.frames.table.reshape(-1)
        self._roots: dict[tuple[int, int], dict[int, tuple[tuple[int, int], ...]]] = {}
        """By levels and size of an address space: what each entry of its root covers."""
        self._work = 0
        self._cost = 0
        self._last = bench.now("the last look found nothing")

    # ------------------------------------------------------------------ when
    def entries_visited(self, mm: mm_struct, what: str, n: int) -> None:
        self._work += n

    def fault(self, mm: mm_struct, addr: int, kind: str, n: int) -> None:
        self._work += n

    def mm_call_end(self, mm: mm_struct, name: str) -> None:
        if self.eager and self._work + PATIENCE >= self._cost:
            self._look_if_settled()

    def truncation_end(self, mapping: address_space) -> None:
        if self.eager:
            self._look_if_settled()

    def finish(self) -> None:
        self._look_if_settled()

    def _look_if_settled(self) -> None:
        if all(self.bench.is_settled(mm) for mm in self.bench.mms.values()):
            self.look()

    # ------------------------------------------------------------------ stores that hardware noted
    def pages_freed(self, n: int) -> None:
        self._astray |= self.kernel.lazy

    def to_user(self, cpu: Cpu) -> None:
        self._astray &= ~(1 << cpu.index)

    def before_invalidate(self, cpu: Cpu) -> None:
        if self._astray >> cpu.index & 1:
            return  # its entries may lead to what a frame was before
        frames = self.kernel.frames
        mm = self.kernel.active_mm[cpu.index]
        if mm is None or not mm.mm_users or mm.serial != cpu.space:
            return
        found = dirty_frames(
            cpu.words, self._frames, frames.page_shift, frames.count, PG_CACHE, PG_DIRTY, self._out
        )
        for pfn in self._out[:found].tolist():
            if self.stored.get(pfn, (-1,))[0] != frames.generation[pfn]:
                self.stored[pfn] = frames.generation[pfn], self.bench.now(f"frame {pfn} was stored to")

    def page_cleaned(self, pfn: int) -> None:
        for cpu in self.kernel.cpus:
            if self.kernel.lazy >> cpu.index & 1:
                self.before_invalidate(cpu)  # what it has of this page is old from now on
        self._astray |= self.kernel.lazy
        self.stored.pop(pfn, None)

    def page_uncached(self, mapping: address_space, index: int, pfn: int) -> None:
        self.stored.pop(pfn, None)
        if self.kernel.frames.mapcount[pfn]:
            here = self.bench.now(f"page {index} leaves the cache")
            self.bench.tell("INV-TRUNC", here, f"{self.kernel.frames.mapcount[pfn]} ptes still map it")

    def bug(self, mm: mm_struct, invariant: str, text: str) -> None:
        self._tell(invariant, text)

    # ------------------------------------------------------------------ a look
    def look(self) -> None:
        """Compare everything now. Nobody may be in the middle of a change."""
        self.looks += 1
        for cpu in self.kernel.cpus:
            self.before_invalidate(cpu)
        found: list[Pfns] = []
        dirty: list[Pfns] = []
        private: list[Pfns] = []
        for mm in self._running():
            self._tables(mm)
            anon = files = 0
            for vma in mm.vmas.values():
                judge = self._huge if vma.huge_size else self._vma
                mapped = judge(vma, found, dirty, private)
                anon, files = anon + mapped[0], files + mapped[1]
            if (anon, files) != (mm.anon_rss, mm.file_rss):
                self._tell(
                    "INV-REF",
                    f"mm {mm.serial} counts {mm.anon_rss} anonymous and {mm.file_rss} file pages, "
                    f"its tables map {anon} and {files}",
                )
        for what in wrong_families(self._running()):
            self._tell("INV-RMAP", what)
        self._counts(_joined(found), _joined(private))
        self._committed()
        check_swap(self.kernel, self._running(), self._tell)
        self._dirt(set(_joined(dirty).tolist()))
        self._cost = sum(map(len, found)) // 4
        self._work = 0
        self._last = self.bench.now("the look before found this in order")

    def _running(self) -> list[mm_struct]:
        """The address spaces that programs use."""
        return [mm for mm in self.bench.mms.values() if mm is not self.kernel.init_mm and mm.mm_users]

    def _tell(self, invariant: str, text: str) -> None:
        self.bench.tell(invariant, self._last, text)

    def _tables(self, mm: mm_struct) -> None:
        """INV-PTALL, and that linked tables are held: count the tables that can be reached."""
        layout = mm.layout
        reached = [0] * layout.levels
        own = self.bench.own_tables.get(mm.serial, set())
        excused = self.kernel.variants.free_pgtables.leaves_tables
        has_huge = any(vma.huge_size for vma in mm.vmas.values())
        todo = [(0, mm.pgd, low, high) for low, high in self._used_of_root(mm)]
        while todo:
            level, table, low, high = todo.pop()
            for _, value, start, _ in entries_in(mm, level, table, low, high):
                format, below = format_of(mm, level), level + 1
                if value & format.leaf_mask:
                    continue
                child = format.table_of(value)
                if value != format.of_table(child):  # it leads to huge pages, in an arch's own way
                    continue
                base = start & -layout.span_of(level)
                end = base + layout.span_of(level)
                vma = _vma_in(mm, base, end)
                if vma is not None and vma.huge_size:
                    continue  # what an arch keeps there for huge pages may look like a table
                if has_huge and self.kernel.ops.is_hugepage_only_range(mm, base, end - base):
                    continue  # or may be indexed by addresses of another scale
                reached[below] += 1
                if not self.kernel.frames.refcount[child >> self.kernel.frames.page_shift]:
                    self._tell("INV-WALK", f"mm {mm.serial} links table {child:#x}, whose frame is free")
                if not excused and child not in own and vma is None:
                    self._tell(
                        "INV-PTALL",
                        f"mm {mm.serial} has a table of {layout.names[below]} at {base:#x}, no vma",
                    )
                if below < layout.pte_level:
                    todo.append((below, child, max(low, base), min(high, end)))
        if reached[-1] > mm.nr_tables[layout.pte_level] or min(mm.nr_tables) < 0:
            self._tell(
                "INV-REF", f"mm {mm.serial} counts {mm.nr_tables} tables by level, {reached} can be reached"
            )

    def _used_of_root(self, mm: mm_struct) -> list[tuple[int, int]]:
        """What each entry of the root that is not empty covers. All are read at once: most are empty."""
        layout = mm.layout
        shape = layout.levels, mm.task_size
        covered = self._roots.get(shape)
        if covered is None:
            covered, addr = self._roots.setdefault(shape, {}), self.kernel.shape.limits.first_user_address
            while addr != mm.task_size:
                stop = self.kernel.ops.pgd_addr_end(mm, addr, mm.task_size)
                index = layout.index_of(0, addr)
                covered[index] = (*covered.get(index, ()), (addr, stop))
                addr = stop
        width, order = layout.entry_bytes[0], self.kernel.shape.byte_order
        values = read_run(self.kernel.ram, mm.pgd, width, order, layout.entries_of(0))
        used = np.flatnonzero(values != np.uint64(format_of(mm, 0).empty))
        return sorted(span for index in used.tolist() for span in covered.get(index, ()))

    def _vma(
        self, vma: vm_area_struct, found: list[Pfns], dirty: list[Pfns], private: list[Pfns]
    ) -> tuple[int, int]:
        """Judge what one vma maps; (anonymous, file pages)."""
        mm = vma.vm_mm
        shape, frames = self.kernel.shape, self.kernel.frames
        shift = mm.layout.page_shift
        pte = shape.pte
        nonlinear = bool(vma.vm_flags & VM_NONLINEAR)
        mapping = self._mapping(vma)
        total = anon_total = 0
        for ptep, addr, stop in table_runs(mm, vma.vm_start, vma.vm_end):
            values = read_ptes(mm, ptep, (stop - addr) >> shift)
            at = np.flatnonzero(pte.mapped_in(values))
            if not len(at):
                continue
            values = values[at]
            pfns: Pfns = ((values & np.uint64(pte.frame_mask)) >> np.uint64(shape.pfn_shift)).view(np.int64)
            inside = pfns < frames.count
            at, values, pfns = at[inside], values[inside], pfns[inside]
            flags = frames.table[FLAGS, pfns]
            if vma.vm_flags & VM_PFNMAP:
                gone = frames.table[REFCOUNT, pfns] == 0
                self._each(vma, "INV-TLB", addr, at[gone], "a driver's page is mapped, and free")
                continue
            counted = flags & PG_RESERVED == 0
            at, values, pfns, flags = at[counted], values[counted], pfns[counted], flags[counted]
            anon = flags & PG_ANON != 0
            total += len(pfns)
            anon_total += int(np.count_nonzero(anon))
            found.append(pfns)
            if pte.dirty is not None:
                dirty.append(pfns[_has(values, pte.dirty)])
            if not vma.vm_flags & VM_SHARED:
                # Where no right is left an entry's other bits mean nothing (s390: invalid, and not protected).
                writable = _has(values, pte.write) & bool(vma.vm_flags & VM_RIGHTS)
                private.append(pfns[writable])
                self._each(
                    vma,
                    "INV-COW",
                    addr,
                    at[writable & ~anon],
                    "a page of a file is writable in a private vma",
                )
            index = linear_index(vma, addr) + at
            if vma.anon_vma is None:
                self._each(vma, "INV-RMAP", addr, at[anon], "an anonymous page, and its vma has no anon_vma")
            else:
                missed = not_found(self.kernel, vma, index[anon], pfns[anon])
                text = "no walk from an anonymous page finds its pte"
                self._each(vma, "INV-RMAP", addr, at[anon][missed], text)
            if mapping is not None:
                index = frames.table[INDEX, pfns] if nonlinear else index
                wrong = ~anon & (
                    (frames.table[MAPPING, pfns] != mapping.slot + 1) | (frames.table[INDEX, pfns] != index)
                )
                self._each(vma, "INV-TRUNC", addr, at[wrong], "a page is mapped that its file does not have")
                assert vma.vm_file is not None
                beyond = index << shift >= vma.vm_file.size
                self._each(
                    vma, "INV-TRUNC", addr, at[beyond & ~wrong], "a page beyond the end of the file is mapped"
                )
            elif len(at):
                self._each(vma, "INV-REF", addr, at[~anon], "a page that is not anonymous is mapped")
        return anon_total, total - anon_total

    def _mapping(self, vma: vm_area_struct) -> address_space | None:
        """What ``vma`` maps, which must know of it."""
        if vma.vm_file is None:
            return None
        mapping = vma.vm_file.mapping
        if not is_in_its_file(vma, mapping):
            self._tell(
                "INV-RMAP", f"vma at {vma.vm_start:#x} of mm {vma.vm_mm.serial} is not in its file's i_mmap"
            )
        return mapping

    def _huge(
        self, vma: vm_area_struct, found: list[Pfns], dirty: list[Pfns], private: list[Pfns]
    ) -> tuple[int, int]:
        """``_vma`` for huge pages: each is counted by its first frame, and in base pages where rss is meant."""
        mm, size, frames = vma.vm_mm, vma.huge_size, self.kernel.frames
        format, shift = format_in(vma), mm.layout.page_shift
        mapping = self._mapping(vma)
        pages = {True: 0, False: 0}
        for addr in range(vma.vm_start, vma.vm_end, size):
            ptep = self.kernel.ops.huge_pte_offset(mm, addr, size)
            value = read_pte(mm, ptep) if ptep >= 0 else format.empty
            if not format.is_mapped(value):
                continue
            pfn = head_of(vma, value)
            head = np.array((pfn,), dtype=np.int64)
            anon = bool(frames.flags[pfn] & PG_ANON)
            pages[anon] += size >> shift
            found.append(head)
            if format.dirty is not None and format.dirty.test(value):
                dirty.append(head)
            what = ""
            if not vma.vm_flags & VM_SHARED and format.write.test(value):
                private.append(head)
                what = "" if anon else "INV-COW: a huge page of a file is writable in a private vma"
            if mapping is not None and not anon:
                assert vma.vm_file is not None
                index = vma.vm_pgoff + ((addr - vma.vm_start) >> shift)
                if (frames.mapping[pfn], frames.index[pfn]) != (mapping.slot + 1, index):
                    what = "INV-TRUNC: a huge page is mapped that its file does not have"
                elif index << shift >= vma.vm_file.size:
                    what = "INV-TRUNC: a huge page beyond the end of the file is mapped"
            if what:
                invariant, _, text = what.partition(": ")
                self._tell(invariant, f"{text}: {addr:#x} of mm {mm.serial}")
        return pages[True], pages[False]

    def _each(self, vma: vm_area_struct, invariant: str, addr: int, at: NDArray[np.int64], text: str) -> None:
        if len(at):
            va = addr + (int(at[0]) << vma.vm_mm.layout.page_shift)
            self._tell(invariant, f"{text}: {va:#x} of mm {vma.vm_mm.serial}")

    def _counts(self, mapped: Pfns, private: Pfns) -> None:
        """INV-REF: mapcount is the number of ptes, references are no fewer. INV-COW: writable means unshared."""
        frames = self.kernel.frames
        ptes = np.bincount(mapped, minlength=self.kernel.free.bump)
        table = frames.table[:, : len(ptes)]
        counts, held = table[MAPCOUNT], table[REFCOUNT]
        is_mapped = ptes > 0
        for pfn in _lowest(is_mapped & (counts != ptes)):
            self._tell("INV-REF", f"frame {pfn} is mapped by {ptes[pfn]} ptes and counts {counts[pfn]}")
        users = ptes + (table[FLAGS] & PG_CACHE != 0)
        for pfn in _lowest(is_mapped & (held < users)):
            self._tell("INV-REF", f"frame {pfn} has {users[pfn]} users and {held[pfn]} references")
        for pfn in _lowest(~is_mapped & (counts != 0)):
            self._tell("INV-REF", f"frame {pfn} counts {counts[pfn]} ptes, none maps it")
        for pfn in np.sort(private[ptes[private] > 1])[:1].tolist():
            self._tell(
                "INV-COW", f"frame {pfn} is writable in a private vma and mapped {frames.mapcount[pfn]} times"
            )

    def _committed(self) -> None:
        """INV-REF: what is promised is what vmas and files were charged."""
        kernel = self.kernel
        charged = sum(
            vma_pages(vma)
            for mm in self.bench.mms.values()
            for vma in mm.vmas.values()
            if vma.vm_flags & VM_ACCOUNT
        ) + sum(mapping.host.committed for mapping in kernel.mappings.objects if mapping.host is not None)
        if charged != kernel.vm_committed:
            self._tell("INV-REF", f"{kernel.vm_committed} pages are committed, {charged} were charged")

    def _dirt(self, dirty: set[int]) -> None:
        """INV-DIRTY: what was stored to is noted in the page or in a pte."""
        frames = self.kernel.frames
        for pfn, (generation, when) in list(self.stored.items()):
            flags = frames.flags[pfn]
            if frames.generation[pfn] != generation or flags & PG_DIRTY:
                del self.stored[pfn]
            elif flags & PG_CACHE and pfn not in dirty and not self._noted_elsewhere(pfn):
                del self.stored[pfn]
                self.bench.tell("INV-DIRTY", when, f"frame {pfn} is clean in its page and in every pte")

    def _noted_elsewhere(self, pfn: int) -> bool:
        """Whether the entries of a page have no dirty bit: its storage key tells, until its last entry goes."""
        shape = self.kernel.shape
        host = self.kernel.mappings.objects[self.kernel.frames.mapping[pfn] - 1].host
        size = host.huge_size if host is not None else 0
        if size:
            return shape.huge_formats[size].dirty is None
        return shape.pte.dirty is None and self.kernel.frames.mapcount[pfn] > 0


def _has(values: NDArray[np.uint64], field: Field) -> NDArray[np.bool_]:
    """Which of ``values`` have a property."""
    holds: NDArray[np.bool_] = values & np.uint64(field.mask) == np.uint64(field.on)
    return holds


def _joined(parts: list[Pfns]) -> Pfns:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _lowest(wrong: NDArray[np.bool_]) -> list[int]:
    """The first place where ``wrong`` holds, if any."""
    places: list[int] = np.flatnonzero(wrong)[:1].tolist()
    return places


def _vma_in(mm: mm_struct, start: int, end: int) -> vm_area_struct | None:
    """The last vma that overlaps [start, end)."""
    for low in mm.vmas.irange(maximum=end - 1, reverse=True):
        vma: vm_area_struct = mm.vmas[low]
        return vma if vma.vm_end > start else None
    return None
