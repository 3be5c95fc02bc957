"""The arch contract: one typed hook per question the mm core asks an architecture. The table of contents.

An architecture plugin is a module (or object) whose functions carry ``@hookimpl`` and the names below. It
implements what its machine does differently; ``polymmu.defaults`` answers the rest. A hook may take fewer
arguments than its spec. Every hook is resolved once per plugin to a plain function in a frozen ``ArchOps``;
pluggy is never on a hot path.

Each docstring begins with when the hook is called and ends with what goes wrong when an arch gets it wrong.
"Run" means consecutive entries of one table: ``ptep`` is the physical address of the first, ``n`` their number.
Levels count from the root (0). Addresses are bytes; ``end == 0`` as an exclusive end means the top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import pluggy

from polymmu.hardware.cpu import Cpu
from polymmu.hardware.entry import EntryFormat
from polymmu.hardware.layout import RadixLayout
from polymmu.hardware.walk import Translation
from polymmu.structs import (
    AddressLimits,
    EntryRun,
    FaultInfo,
    Kernel,
    mm_struct,
    mmu_gather,
    vm_area_struct,
)

__all__ = ["GROUPS", "PROJECT", "ArchKernel", "ArchOps", "hookimpl", "hookspec"]

PROJECT = "polymmu"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Hook = TypeVar("Hook", bound=Callable[..., Any])


def group(title: str) -> Callable[[Hook], Hook]:
    """The decorator of the hooks of one group."""

    def spec(hook: Hook) -> Hook:
        vars(hook)["group"] = title
        return hookspec(firstresult=True)(hook)

    return spec


shape, range_walk, huge_page = group("shape"), group("range walks"), group("huge pages")
table, gather, flush = group("tables"), group("gather"), group("flush")
entries, context = group("entries"), group("contexts")
fault, lockless_walker = group("faults"), group("lockless walkers")


class ArchOps(Protocol):
    """Everything the core may ask an architecture."""

    # ------------------------------------------------------------------ shape
    @shape
    def config_class(self) -> type:
        """Called when a machine file that names this arch is read. The attrs class of its own section.

        Wrong: the section's mistakes are reported badly, or not at all.
        """
        ...

    @shape
    def summary(self) -> str:
        """Called by ``polymmu arches``. One line saying what this architecture is.

        Wrong: only the listing suffers.
        """
        ...

    @shape
    def boot_registers(self, section: Any) -> dict[str, int]:
        """Called once per machine. The control registers of a CPU after boot, root register aside.

        Wrong: the walker obeys another mode than the one the tables were made for.
        """
        ...

    @shape
    def page_table_layout(self, section: Any) -> RadixLayout:
        """Called once per machine. Linux's view of the tables: levels, index bits, table sizes.

        It may differ from what hardware walks (s390 of 2.6.11 keeps four hardware entries in one pgd entry).
        Wrong: range walks stop at the wrong boundaries and tables are freed too early or never.
        """
        ...

    @shape
    def entry_format(self, section: Any, registers: Mapping[str, int], level: int) -> EntryFormat:
        """Called once per machine and level. The bits of an entry of ``level`` under these registers.

        Wrong: the core misreads entries (a clean page looks dirty, a PROT_NONE page looks absent).
        """
        ...

    @shape
    def translation(self, section: Any, registers: Mapping[str, int]) -> Translation:
        """Called once per machine, and by ``translate``. How hardware turns an address into a frame.

        ``registers``: the architecture's own names. A RadixTranslation, or the arch's own MMU. Raises
        UserMistake where they make no sense. Wrong: emulated hardware and real hardware disagree.
        """
        ...

    @shape
    def root_of(self, section: Any, registers: Mapping[str, int], space: str | None) -> int:
        """Called by ``translate``. What the registers put into the root register: the root table's address,
        or whatever else this MMU's ``latch_root`` and ``walk`` take for a root.

        ``space`` picks an address space where there are several; None is the usual one. Raises UserMistake
        for an unknown space or a missing register. Wrong: every translation starts from the wrong table.
        """
        ...

    @shape
    def read_image(
        self, meta: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> tuple[dict[str, int], list[tuple[int, bytes]]]:
        """Called by ``translate`` for a sparse image (.npz): its ``meta`` document and all its arrays.

        What the image says in the architecture's own way: registers that are more than a plain number, and
        memory, as (physical address, bytes), that is not in ``table_data``. Wrong: a hash table or a segment
        buffer that was saved is not seen.
        """
        ...

    @shape
    def address_limits(self, section: Any) -> AddressLimits:
        """Called once per machine. Where user addresses may be, and where mappings and stacks go.

        Wrong: mappings land where the MMU cannot reach them, or teardown stops short of the top.
        """
        ...

    @shape
    def huge_page_sizes(self, section: Any) -> tuple[int, ...]:
        """Called once per machine. Sizes of huge pages in bytes, ascending; empty where there are none.

        Wrong: a huge mapping is refused, or made where no entry can hold it.
        """
        ...

    @shape
    def memory_model(self, section: Any) -> str:
        """Called when a scenario is explored. What CPUs may see of each other's stores: ``tso`` or ``weak``.

        ``tso``: a CPU's store may be seen by others after its own later loads, and nothing else is out of order.
        ``weak``: more than that, which is not modelled. Wrong: ``explore --memory-model tso`` proves what hardware
        does not keep.
        """
        ...

    @shape
    def byte_order(self, section: Any) -> str:
        """Called once per machine. ``little`` or ``big``: the order of bytes in a table entry.

        Wrong: every entry is read backwards.
        """
        ...

    @shape
    def page_protections(self, section: Any, registers: Mapping[str, int]) -> tuple[int, ...]:
        """Called once per machine. Bits of a present, young pte for each VM_READ|VM_WRITE|VM_EXEC|VM_SHARED.

        Sixteen values. Private writable mappings get no write bit (a store must fault, to be copied);
        a mapping without rights gets an entry that hardware refuses and the core still counts.
        Wrong: copy-on-write is lost, or mprotect(PROT_NONE) loses the page.
        """
        ...

    @shape
    def deviations(self, section: Any) -> tuple[str, ...]:
        """Called by the conformance kit. What Linux on this architecture really did wrong in the release modelled.

        Names that the kit knows: ``tables_freed_early`` (an unhooked table may be handed out again before the
        flush), ``pages_freed_early`` (a page likewise). The kit then requires what it otherwise forbids.
        Wrong: a hole in the model passes for history, or history for a hole.
        """
        ...

    # ------------------------------------------------------------ range walks
    @range_walk
    def pgd_addr_end(self, mm: mm_struct, addr: int, end: int) -> int:
        """Called once per step of a range walk at the top level, before the entry is read.

        Where the walk must stop: the next boundary of a top-level entry, or ``end``, whichever comes first.
        ``end == 0`` means the top. Wrong: an arch with holes walks into them, or the walk never ends.
        """
        ...

    @range_walk
    def addr_end(self, mm: mm_struct, level: int, addr: int, end: int) -> int:
        """Called once per step of a range walk at ``level`` below the top. As ``pgd_addr_end``.

        Wrong: entries are skipped, or a neighbour's table is freed.
        """
        ...

    @range_walk
    def have_move_pmd(self, mm: mm_struct) -> bool:
        """Called when mremap moves a range. Whether a table of ptes may be hooked over to another entry whole.

        Sound only where flush_tlb_range also drops what leads to the table, and nothing else remembers the ptes'
        addresses. Wrong (hashed MMUs, linear page tables): the old addresses keep translating.
        """
        ...

    @range_walk
    def grow_task_size(self, mm: mm_struct, end: int) -> bool:
        """Called when a mapping is to end above ``mm.task_size``. Grow the tables and ``mm.task_size``.

        False where they cannot grow so far; may sleep. Wrong (s390): programs that want more than the first
        4 TiB are refused, or their addresses fold onto lower ones.
        """
        ...

    # ------------------------------------------------------------- huge pages
    @huge_page
    def huge_entry_format(self, section: Any, registers: Mapping[str, int], size: int) -> EntryFormat | None:
        """Called once per machine and huge page size. The bits of the entry that maps a huge page of ``size``.

        None: those of the table level whose entries span ``size``.
        Wrong: the core misreads a huge page's frame, rights or dirty bit.
        """
        ...

    @huge_page
    def huge_protections(
        self, section: Any, registers: Mapping[str, int], size: int
    ) -> tuple[int, ...] | None:
        """Called once per machine and huge page size. As ``page_protections``, for a huge page's entry.

        None: the same bits, and the level's mark of a leaf. Wrong: the walker takes the entry for one that points
        to a table.
        """
        ...

    @huge_page
    def is_hugepage_only_range(self, mm: mm_struct, addr: int, length: int) -> bool:
        """Called when a place for a mapping is chosen. Whether only huge pages may live in the range.

        Wrong: a small page is put where the hardware looks it up at a huge page's index.
        """
        ...

    @huge_page
    def prepare_hugepage_range(self, mm: mm_struct, addr: int, length: int, size: int) -> None:
        """Called before a huge mapping is made. May set the range up; raises SyscallError to refuse.

        Wrong: a huge mapping shares a segment or region with small pages.
        """
        ...

    @huge_page
    def huge_pte_alloc(self, mm: mm_struct, addr: int, size: int) -> int:
        """Called at a fault in a huge mapping, and at fork. Physical address of the entry for ``addr``, tables made.

        -1 where no memory is left. May sleep. Wrong: the huge page is entered at a level the walker does not accept.
        """
        ...

    @huge_page
    def huge_pte_offset(self, mm: mm_struct, addr: int, size: int) -> int:
        """Called wherever the entry of a huge page is looked for. Its physical address, -1 where a table is missing.

        Wrong: huge pages are not found again when they are unmapped, and leak.
        """
        ...

    @huge_page
    def set_huge_pte(self, mm: mm_struct, addr: int, ptep: int, value: int, size: int) -> None:
        """Called with the table lock held to write a huge page's entry, empty or being replaced.

        An entry at ``ptep`` is as wide as a pte, wherever it is.

        Wrong on sparc64 (a huge page is a run of small entries): only the first part of it is mapped.
        """
        ...

    @huge_page
    def huge_ptep_get_and_clear(self, mm: mm_struct, addr: int, ptep: int, size: int) -> int:
        """Called with the table lock held to take a huge page's entry out. Its last value; the caller flushes.

        Wrong: a part of the huge page stays mapped, or a dirty page is lost.
        """
        ...

    @huge_page
    def hugetlb_free_pgd_range(self, tlb: mmu_gather, addr: int, end: int, floor: int, ceiling: int) -> None:
        """Called by free_pgtables for a huge vma. Free its tables between floor and ceiling.

        Wrong: tables of huge mappings leak (addresses not scaled on ia64).
        """
        ...

    # ----------------------------------------------------------------- tables
    @table
    def pgd_alloc(self, mm: mm_struct) -> int:
        """Called when an mm is made, before it has a vma. Physical address of a root, entries empty.

        Wrong: garbage in the root is walked as tables.
        """
        ...

    @table
    def pgd_free(self, mm: mm_struct, pgd: int) -> None:
        """Called when the last reference to an mm goes, after every CPU has left it.

        Wrong: roots leak, or are freed while a lazy CPU still has them loaded.
        """
        ...

    @table
    def table_alloc(self, mm: mm_struct, level: int, addr: int) -> int:
        """Called when a walk that allocates meets an empty entry; may sleep. A table, every entry empty.

        Returns its physical address, or -1 where no memory is left. ``level`` is the new table's own.
        Wrong: an s390 table filled with zeroes is a table full of valid entries.
        """
        ...

    @table
    def table_free(self, mm: mm_struct, level: int, table: int) -> None:
        """Called when a table that no CPU can reach any more goes back (also one that lost an allocation race).

        An arch that keeps it, or a frame it is a part of, tells ``kernel.events.table_returned``.
        Wrong: fragments that share a frame are freed with it.
        """
        ...

    @table
    def populate(self, mm: mm_struct, level: int, addr: int, entry: int, table: int) -> None:
        """Called with the table lock held to hook ``table`` into ``entry`` (of ``level``), found empty.

        Wrong on PAE: other CPUs keep faulting on a top entry they cached when it was empty.
        """
        ...

    @table
    def clear_entry(self, mm: mm_struct, level: int, addr: int, entry: int) -> None:
        """Called with the table lock held to empty ``entry`` of an upper level; the table is freed later.

        Wrong: the walker goes on into a freed table.
        """
        ...

    @table
    def pte_map(self, mm: mm_struct, table: int) -> None:
        """Called before the entries of a pte table are touched. Tables in high memory are mapped here.

        Wrong: maps and unmaps do not balance.
        """
        ...

    @table
    def pte_unmap(self, mm: mm_struct, table: int) -> None:
        """Called when the core is done with a table it mapped, in reverse order.

        Wrong: atomic map slots leak, or another's is unmapped.
        """
        ...

    @table
    def check_pgt_cache(self, mm: mm_struct) -> None:
        """Called when a gather is finished. Trim private caches of free tables.

        Wrong: free tables pile up.
        """
        ...

    @table
    def tables_need_rcu(self, mm: mm_struct) -> bool:
        """Called when a batch of tables is freed. Whether lockless walkers are only stopped by RCU.

        True where a flush does not interrupt other CPUs (broadcast instructions).
        Wrong: gup_fast reads a freed table.
        """
        ...

    # ----------------------------------------------------------------- gather
    @gather
    def tlb_gather(self, tlb: mmu_gather) -> None:
        """Called when a gather begins. The arch may set ``tlb.arch`` and ``tlb.fast_mode``; and how large a gather of
        its own was, if it once had one, ``tlb.limit`` pages and ``tlb.table_limit`` tables.

        Wrong: fast mode with several CPUs frees pages that others still reach.
        """
        ...

    @gather
    def tlb_start_vma(self, tlb: mmu_gather, vma: vm_area_struct) -> None:
        """Called before the entries of a vma are cleared. Virtually indexed caches are flushed here.

        Wrong: dirty lines are written back through a translation that is gone.
        """
        ...

    @gather
    def tlb_end_vma(self, tlb: mmu_gather, vma: vm_area_struct) -> None:
        """Called after the entries of a vma were cleared. Arches that flush by vma do it here.

        Wrong: a flush uses the next vma's attributes.
        """
        ...

    @gather
    def tlb_remove_tlb_entry(self, tlb: mmu_gather, ptep: int, addr: int, n: int) -> None:
        """Called after a run of ``n`` ptes from ``addr`` was cleared in a gather. Record what to flush.

        ``ptep`` -1: another gather may have cleared some of these, in any table (Linux 4.13).

        Wrong: the flush misses pages, which then are used through stale translations.
        """
        ...

    @gather
    def tlb_flush(self, tlb: mmu_gather) -> None:
        """Called before a gather frees what it holds. Afterwards no TLB and no walk cache may reach it.

        Wrong: use after free through a stale translation.
        """
        ...

    @gather
    def pte_free_tlb(self, tlb: mmu_gather, table: int, addr: int) -> None:
        """Called when a pte table was unhooked. Queue it so that it is freed only after the flush.

        Wrong (x86_64 of 2.6.11 for upper tables): freed at once, a walk cache still points to it.
        """
        ...

    @gather
    def table_free_tlb(self, tlb: mmu_gather, level: int, table: int, addr: int) -> None:
        """Called when a table above the ptes was unhooked; ``level`` is the table's own. As ``pte_free_tlb``."""
        ...

    @gather
    def tlb_finish(self, tlb: mmu_gather, start: int, end: int) -> None:
        """Called when a gather ends, after its last flush and free. Tear down ``tlb.arch``.

        Wrong: an arch's own batches are lost.
        """
        ...

    # ------------------------------------------------------------------ flush
    @flush
    def flush_tlb_mm(self, mm: mm_struct) -> None:
        """Called when all of an mm's translations changed (fork, exec). Every CPU must forget them.

        Wrong: a parent keeps writing to pages it now shares with its child.
        """
        ...

    @flush
    def flush_tlb_range(self, vma: vm_area_struct, start: int, end: int) -> None:
        """Called after rights or frames in [start, end) changed (mprotect, mremap), and when huge pages went.

        Wrong: an access that should fault succeeds.
        """
        ...

    @flush
    def flush_tlb_page(self, vma: vm_area_struct, addr: int) -> None:
        """Called after one pte changed (copy-on-write, access bits).

        Wrong: a CPU goes on reading the page that was copied away.
        """
        ...

    @flush
    def flush_tlb_pgtables(self, mm: mm_struct, start: int, end: int) -> None:
        """Called at the end of free_pgd_range unless the whole mm goes. For MMUs that cache tables by address.

        Wrong (ia64, old sparc64): the virtually mapped linear table keeps translating to freed tables.
        """
        ...

    @flush
    def flush_cache_mm(self, mm: mm_struct) -> None:
        """Called before an mm's mappings are copied or torn down, where caches are virtually indexed.

        Wrong: stale lines.
        """
        ...

    @flush
    def flush_cache_range(self, vma: vm_area_struct, start: int, end: int) -> None:
        """Called before the entries of a range change. As ``flush_cache_mm``."""
        ...

    # ---------------------------------------------------------------- entries
    @entries
    def set_pte(self, mm: mm_struct, addr: int, ptep: int, values: EntryRun) -> None:
        """Called with the table lock held to write a run of ptes; each was empty, or is being replaced.

        ``values`` is the caller's and may change after the call: copy what is kept.
        Wrong on a hashed MMU: the hash table keeps the old translation.
        """
        ...

    @entries
    def ptep_get_and_clear(
        self, mm: mm_struct, addr: int, ptep: int, n: int, tlb: mmu_gather | None
    ) -> EntryRun:
        """Called with the table lock held to take a run of ptes out. Returns their last values.

        Atomic against hardware: accessed and dirty bits set until the moment of clearing are in the result.
        ``tlb`` is the gather that will flush, None where the caller flushes. Wrong: a dirty page is lost.
        """
        ...

    @entries
    def ptep_clear_flush(self, vma: vm_area_struct, addr: int, ptep: int, n: int) -> EntryRun:
        """Called where entries must be gone from every TLB before the caller goes on. Returns their values.

        Wrong: two CPUs see different frames at one address.
        """
        ...

    @entries
    def set_wrprotect(self, mm: mm_struct, addr: int, ptep: int, n: int) -> None:
        """Called with the table lock held to take the write right from a run (fork). Present entries only.

        Wrong: parent and child share a page that one of them can write.
        """
        ...

    @entries
    def set_access_flags(self, vma: vm_area_struct, addr: int, ptep: int, value: int) -> bool:
        """Called when a fault only has to raise rights or accessed/dirty bits of a present pte.

        Stores ``value`` and returns whether it changed anything. Wrong: the access faults for ever.
        """
        ...

    @entries
    def update_mmu_cache(self, vma: vm_area_struct, addr: int, ptep: int, n: int) -> None:
        """Called after ptes were entered at a fault. Hashed and software-filled MMUs may preload them.

        A huge page (``vma.huge_size``) is one entry, ``addr`` its first address.

        Wrong: nothing but speed, except where not-present translations are cached.
        """
        ...

    @entries
    def enter_lazy_mmu(self, mm: mm_struct) -> None:
        """Called before a run of pte updates under one table lock. Updates may be batched until leave.

        Wrong: batches outlive the lock.
        """
        ...

    @entries
    def leave_lazy_mmu(self, mm: mm_struct) -> None:
        """Called before the table lock of ``enter_lazy_mmu`` is dropped. Everything batched must be done.

        Wrong: another CPU still uses what this one believes gone.
        """
        ...

    @entries
    def test_and_clear_young(self, vma: vm_area_struct, addr: int, ptep: int, n: int) -> int:
        """Called by page_referenced. How many of the run were accessed; their accessed state is cleared.

        Wrong: hot pages look cold. s390 keeps this in storage keys.
        """
        ...

    @entries
    def page_test_and_clear_dirty(self, kernel: Kernel[Any], pfn: int) -> bool:
        """Called when the last mapping of a page goes. Dirty state kept per frame instead of per pte.

        Wrong on s390: written pages are dropped as clean.
        """
        ...

    # --------------------------------------------------------------- contexts
    @context
    def init_new_context(self, mm: mm_struct, like: mm_struct | None) -> None:
        """Called when an mm is made, after ``mm.layout`` and the places have the boot-time ones, before pgd_alloc.

        ``like``: the parent at a fork, whose layout and places ``mm`` has then; None for a new program. May set
        ``mm.context``, and for a new program choose another layout. Wrong: two mms share an address-space number.
        """
        ...

    @context
    def destroy_context(self, mm: mm_struct) -> None:
        """Called when the last reference to an mm goes, before pgd_free. Release its context.

        Wrong: a reused number finds the old mm's translations.
        """
        ...

    @context
    def switch_mm(self, cpu: Cpu, prev: mm_struct | None, following: mm_struct) -> None:
        """Called when ``cpu`` starts to run ``following``. Load its root; make stale translations unreachable.

        ``prev`` is ``following`` where the CPU comes back from ``enter_lazy_tlb``: make up for what it missed.

        Wrong: the next program reads the previous one's memory.
        """
        ...

    @context
    def enter_lazy_tlb(self, cpu: Cpu, mm: mm_struct) -> None:
        """Called when ``cpu`` goes idle, or on with a kernel thread, and keeps ``mm``'s tables loaded; also again.

        Flushes may pass it over from now on, or let it go over to the kernel's own tables; switch_mm ends it.

        Wrong: a lazy CPU walks tables that were freed.
        """
        ...

    # ----------------------------------------------------------------- faults
    @fault
    def decode_fault(self, code: int) -> FaultInfo:
        """Called first at a hardware fault. What the error code says.

        Wrong: a write fault is served as a read and faults again for ever.
        """
        ...

    # ------------------------------------------------------- lockless walkers
    @lockless_walker
    def gup_fast_begin(self, cpu: Cpu, mm: mm_struct) -> bool:
        """Called before a lockless walk of ``mm``, which ``cpu`` runs. Keep tables from being freed under it.

        False, and nothing done: this architecture (of that release) has no lockless walk.
        Wrong: the walk reads a reused table.
        """
        ...

    @lockless_walker
    def gup_fast_end(self, cpu: Cpu, mm: mm_struct) -> None:
        """Called after a lockless walk. Undo ``gup_fast_begin``.

        Wrong: the CPU never again answers an interrupt, and the next flush waits for it for ever.
        """
        ...


ArchKernel = Kernel[ArchOps]
"""A kernel whose ``ops`` are typed."""

GROUPS: dict[str, tuple[str, ...]] = {
    title: tuple(name for name, hook in vars(ArchOps).items() if getattr(hook, "group", "") == title)
    for title in dict.fromkeys(getattr(hook, "group", "") for hook in vars(ArchOps).values())
    if title
}
"""The hooks by group, in the order of the contract."""
