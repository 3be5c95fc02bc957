"""Kernel objects: data that hooks and the mm core both name, and no algorithms.

The names are Linux's. An object from a slab has a ``slot`` (its identity, as an address is in C) and a
``generation`` (how often the slot was reused; for sanitizers only). Objects compare by identity.

Every physical address here is an ``int`` in bytes; a frame is named by its number (``pfn``).

First reading: ``vm_area_struct``, ``mm_struct``, ``mmu_gather``, ``Kernel``; skip the flags.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray
from sortedcontainers import SortedDict

from polymmu.description.model import MachineDescription
from polymmu.events import Events
from polymmu.hardware.cpu import Cpu
from polymmu.hardware.entry import EntryFormat, Field
from polymmu.hardware.layout import RadixLayout
from polymmu.hardware.ram import Frames, Ram
from polymmu.sched.driver import Sched
from polymmu.sched.locks import Lock, Mutex, RwSem, Spinlock
from polymmu.sched.shared import owned, shared
from polymmu.slab import Slab

__all__ = [
    "AddressLimits",
    "EntryRun",
    "FaultInfo",
    "File",
    "FreeFrames",
    "GatherBatch",
    "Kernel",
    "Shape",
    "SwapArea",
    "VmaTree",
    "address_space",
    "mm_struct",
    "mmu_gather",
    "vm_area_struct",
]

EntryRun = NDArray[np.uint64]
"""Values of consecutive table entries."""

# vm_flags: what a mapping allows and how it behaves (Linux's names; values are ours).
VM_READ = 1 << 0
VM_WRITE = 1 << 1
VM_EXEC = 1 << 2
VM_SHARED = 1 << 3
VM_GROWSDOWN = 1 << 4
VM_PFNMAP = 1 << 5
VM_HUGETLB = 1 << 6
VM_ACCOUNT = 1 << 7
VM_DONTEXPAND = 1 << 8
VM_DONTCOPY = 1 << 9
VM_NORESERVE = 1 << 10
VM_NONLINEAR = 1 << 11  # pages in any order (remap_file_pages)

# page flags: the FLAGS column of ``Frames``. NONZERO belongs to the hardware (hardware.ram).
PG_ANON = 1 << 1  # mapped by anonymous (or COWed private) ptes
PG_LRU = 1 << 2  # on the LRU list
PG_TABLE = 1 << 3  # a page table
PG_DIRTY = 1 << 4
PG_REFERENCED = 1 << 5
PG_CACHE = 1 << 6  # in a page cache; MAPPING and INDEX say where
PG_RESERVED = 1 << 7  # never allocated or freed (zero page, frame 0)
PG_GATHER = 1 << 8  # a gather's batch page
PG_ACTIVE = 1 << 9
PG_HEAD = 1 << 10  # first frame of a huge page; PRIVATE is log2 of how many it has
PG_TAIL = 1 << 11  # another frame of it; INDEX is the first
PG_LOCKED = 1 << 12  # somebody decides what becomes of it (mm.pagelock)
PG_SWAPCACHE = 1 << 13  # in the swap cache; PRIVATE is its slot


@attrs.frozen(kw_only=True)
class AddressLimits:
    """Where user addresses may be. All in bytes; ``task_size`` and ``mmap_base`` are exclusive tops.

    ``holes``: ranges [start, end) below ``task_size`` that the MMU cannot translate. ``stack_top``: where a
    program's stack ends. ``mmap_base``: mappings without a wished address are placed below it, downwards.
    ``huge_ranges``: where alone huge mappings may be, in the order in which they are searched; none: anywhere.
    ``start_brk``: where the heap of a program begins whose loader did not say; None: two thirds up.
    """

    task_size: int
    mm_vm_size: int
    mmap_base: int
    stack_top: int
    first_user_address: int = 0
    holes: tuple[tuple[int, int], ...] = ()
    huge_ranges: tuple[tuple[int, int], ...] = ()
    va_bits: int = 64
    start_brk: int | None = None


@attrs.frozen(kw_only=True)
class FaultInfo:
    """A hardware fault as the mm core reads it: ``access`` fetch/load/store, ``kind`` not_present,
    protection, reserved, non_canonical, dirty or accessed (software A/D), ``user`` who asked."""

    access: str
    kind: str
    user: bool


class StoredBits(dict[int, int]):
    """Protection -> the entry bits of a page that was just stored to, worked out once for each.

    Usually the arch's own protections; a driver may have set others in its vma.
    """

    def __init__(self, pte: EntryFormat) -> None:
        super().__init__()
        self.pte = pte

    def __missing__(self, prot: int) -> int:
        value = self.pte.write.set(prot)
        for noted in (self.pte.dirty, self.pte.accessed):
            value = noted.set(value) if noted is not None else value
        self[prot] = value
        return value


@attrs.frozen(kw_only=True)
class Shape:
    """The arch's answers about geometry, asked once when a machine is built."""

    layout: RadixLayout
    formats: tuple[EntryFormat, ...]
    limits: AddressLimits
    protections: tuple[int, ...]
    """Entry bits of a present pte by VM_READ | VM_WRITE | VM_EXEC | VM_SHARED (Linux: protection_map)."""
    huge_page_sizes: tuple[int, ...]
    huge_formats: dict[int, EntryFormat]
    """Format of a huge page's entry, by size."""
    huge_protections: dict[int, tuple[int, ...]]
    """As ``protections``, for a huge page's entry, by size."""
    byte_order: str
    registers: dict[str, int]

    @functools.cached_property
    def pte(self) -> EntryFormat:
        """Format of the last level."""
        return self.formats[-1]

    @functools.cached_property
    def pfn_shift(self) -> int:
        """Where a pte's frame number stands."""
        return self.layout.page_shift - self.pte.address_shift

    @functools.cached_property
    def stored(self) -> dict[int, int]:
        """For a protection the entry bits of a page that was just stored to: writable, dirty, young."""
        return StoredBits(self.pte)

    @functools.cached_property
    def steps(self) -> tuple[tuple[int, int, int, int, int, int], ...]:
        """Per level what a software walk needs: shift, index mask, entry bytes, table mask and shift, empty entry."""
        layout = self.layout
        return tuple(
            (
                layout.shifts[level],
                layout.entries_of(level) - 1,
                layout.entry_bytes[level],
                self.formats[level].table_mask,
                max(self.formats[level].address_shift, 0),
                self.formats[level].empty,
            )
            for level in range(layout.levels)
        )

    @functools.cached_property
    def account_masks(self) -> NDArray[np.uint64]:
        """What ``hardware.scans.account_ptes`` must know of the pte format and of the page flags."""
        pte, none = self.pte, Field(0, 0)
        dirty, young = pte.dirty or none, pte.accessed or none
        refused = pte.prot_none or pte.present
        return np.array(
            (
                pte.present.mask,
                pte.present.on,
                refused.mask,
                refused.on,
                pte.frame_mask,
                self.pfn_shift,
                dirty.mask,
                dirty.on,
                young.mask,
                young.on,
                PG_RESERVED,
                PG_ANON,
                PG_DIRTY,
                PG_REFERENCED,
            ),
            dtype=np.uint64,
        )


class VmaTree(Protocol):
    """Vmas by the pages they map, [vm_pgoff, last page], which must not change while one is in the tree.

    Guard: the file's i_mmap_lock, also from one step of an iteration to the next. ``visited``: nodes that
    ``overlapping`` looked at so far.
    """

    visited: int

    def insert(self, vma: vm_area_struct) -> None:
        """Add ``vma``, after those that map the same pages."""

    def insert_after(self, vma: vm_area_struct, prev: vm_area_struct) -> None:
        """Add ``vma``, which maps the same pages as ``prev``, so that an iteration meets it later."""

    def remove(self, vma: vm_area_struct) -> None:
        """Take ``vma`` out."""

    def overlapping(self, first: int, last: int) -> Iterator[vm_area_struct]:
        """Those that map one of the pages ``first`` to ``last``, in the tree's order."""
        ...

    def __iter__(self) -> Iterator[vm_area_struct]:
        """All of them, in that order."""
        ...

    def __len__(self) -> int: ...

    def __contains__(self, vma: vm_area_struct) -> bool:
        """Whether ``vma`` is in, under the pages that it maps now."""
        ...


@attrs.define(eq=False, slots=True)
class address_space:
    """A file's pages and the vmas that map them (Linux: struct address_space).

    ``pages``: page index -> pfn, ordered. ``i_mmap``: the linear vmas, a forked child's after its parent's.
    ``i_mmap_nonlinear``: the others by slot, in the order they became so; a vma may go from i_mmap to there, never
    back. Guard under several CPUs: ``i_mmap_lock`` for both, the page lock for pages. ``i_mutex``: held by who
    changes the file's size. ``unmap_mutex``: one unmap_mapping_range at a time. ``hole``: the pages, first and last,
    that somebody who has ``invalidate_lock`` for writing takes out; read below a table lock.
    """

    slot: int
    i_mmap_lock: Mutex | Spinlock
    i_mutex: Mutex
    unmap_mutex: Mutex
    invalidate_lock: RwSem
    i_mmap: VmaTree
    generation: int = 0
    host: File | None = attrs.field(default=None, metadata=owned())
    pages: SortedDict = attrs.field(factory=SortedDict, metadata=owned())
    i_mmap_nonlinear: dict[int, vm_area_struct] = attrs.field(factory=dict)
    truncate_count: int = attrs.field(default=0, metadata=shared(guard=lambda mapping: mapping.i_mmap_lock))
    hole: tuple[int, int] | None = attrs.field(
        default=None, metadata=shared(guard=lambda mapping: mapping.invalidate_lock)
    )


@attrs.define(eq=False, slots=True)
class File:
    """An open file with its inode in one: ``size`` in bytes, ``mapping`` its cached pages.

    ``mmap``: a driver's own mmap operation; it may set up the vma or raise SyscallError. ``remove``: its device is
    pulled out. ``release``: its end, called when nobody holds the file any more. ``read_page(index)`` gives a page's
    initial bytes (None: zeroes). ``anonymous``: shared anonymous memory (shmem). ``huge_size``: size of its pages where
    they are huge ones (a file of hugetlbfs), else 0. ``committed``: pages charged for it.
    """

    name: str
    size: int = attrs.field(metadata=shared(guard=lambda file: file.mapping.i_mutex))
    mapping: address_space
    references: int = 1
    anonymous: bool = False
    huge_size: int = 0
    committed: int = 0
    mmap: Callable[[File, vm_area_struct], None] | None = None
    remove: Callable[[], None] | None = None
    release: Callable[[], None] | None = None
    read_page: Callable[[int], bytes] | None = None
    written: dict[int, bytes] = attrs.field(factory=dict[int, bytes])
    """Pages that reclaim wrote back, by index: they are read again from here."""


@attrs.define(eq=False, slots=True)
class anon_vma:
    """Ties anonymous pages to the vmas that may map them (``mm.anon_vma``).

    ``root``: the eldest of its family, of whose ``lock`` and ``vmas`` (by slot, in the order they came) alone use is
    made; itself unless a fork made it. ``references``: vmas, members of the family, and who looks at it.
    """

    slot: int
    lock: Mutex | Spinlock
    generation: int = 0
    references: int = 0
    root: anon_vma = None  # type: ignore[assignment]  # set by whoever allocates it from the slab
    vmas: dict[int, vm_area_struct] = attrs.field(factory=dict)


@attrs.define(eq=False, slots=True)
class SwapArea:
    """Where anonymous pages go when memory runs short: ``slots`` places of a page each, the first never used.

    ``swap_map``: how many name a slot, ptes and the cache; free slots are not in it. ``contents``: what was written
    there (empty: zeroes). ``cache``: pages of slots that are in memory too. ``freed``: free slots that were used, last
    freed last; from ``bump`` on none was ever used. ``written``, ``read``: pages that went out, and came in.
    """

    lock: Spinlock
    slots: int
    swap_map: dict[int, int] = attrs.field(factory=dict[int, int])
    contents: dict[int, bytes] = attrs.field(factory=dict[int, bytes])
    cache: dict[int, int] = attrs.field(factory=dict[int, int])
    freed: list[int] = attrs.field(factory=list[int])
    bump: int = 1
    written: int = 0
    read: int = 0


def _guard_of_count(vma: vm_area_struct) -> Mutex | Spinlock | None:
    """Of ``vm_truncate_count``; None for a vma that its file does not know."""
    mapping = vma.vm_file.mapping if vma.vm_file is not None else None
    if mapping is None or not (vma.slot in mapping.i_mmap_nonlinear or vma in mapping.i_mmap):
        return None
    return mapping.i_mmap_lock


def _lock_of_list(vma: vm_area_struct) -> RwSem | None:
    """Of what only its mm may change; None for a vma that is not on its mm's list."""
    mm, prev = vma.vm_mm, vma.vm_prev
    before = mm.mmap if prev is None else prev.vm_next
    return _mmap_lock_of(mm) if before is vma else None


def _locks_of_place(vma: vm_area_struct) -> list[Lock]:
    """Of what says which pages are where: walks come from the mm, the file and the anon_vma. A stack grows in a fault,
    which has mmap_lock for reading only."""
    mmap_lock = _lock_of_list(vma)
    if mmap_lock is None:
        return []
    locks: list[Lock] = [] if vma.vm_flags & VM_GROWSDOWN else [mmap_lock]
    if vma.vm_file is not None:
        locks.append(vma.vm_file.mapping.i_mmap_lock)
    if vma.anon_vma is not None:
        locks.append(vma.anon_vma.root.lock)
    return locks


def _lock_of_family(vma: vm_area_struct) -> Lock | None:
    """Of the list that a vma with anonymous pages is on; None before a fault puts it on one, where several may try."""
    return vma.anon_vma.root.lock if vma.anon_vma is not None else None


@attrs.define(eq=False, slots=True)
class vm_area_struct:
    """One mapping [vm_start, vm_end) of an mm. ``vm_pgoff``: file page (or, anonymous, virtual page) of its start.

    ``vm_page_prot``: entry bits of a present pte in it. ``huge_size``: size of its pages where they are huge ones
    (then VM_HUGETLB is set), else 0. Guard: the mm's mmap_lock; of its place, also the locks of walks from elsewhere.
    """

    slot: int
    generation: int = 0
    vm_mm: mm_struct = None  # type: ignore[assignment]  # set by whoever allocates it from the slab
    vm_start: int = attrs.field(default=0, metadata=shared(guard=_locks_of_place, reads="unseen"))
    vm_end: int = attrs.field(default=0, metadata=shared(guard=_locks_of_place, reads="unseen"))
    vm_flags: int = attrs.field(default=0, metadata=shared(guard=_lock_of_list, reads="unseen"))
    vm_page_prot: int = attrs.field(default=0, metadata=shared(guard=_lock_of_list, reads="unseen"))
    huge_size: int = 0
    vm_pgoff: int = attrs.field(default=0, metadata=shared(guard=_locks_of_place, reads="unseen"))
    vm_file: File | None = None
    anon_vma: anon_vma | None = attrs.field(
        default=None, metadata=shared(guard=_lock_of_family, reads="parts")
    )
    vm_truncate_count: int = attrs.field(default=0, metadata=shared(guard=_guard_of_count))
    vm_private_data: Any = None
    vm_next: vm_area_struct | None = attrs.field(
        default=None, metadata=shared(guard=_lock_of_list, reads="unseen")
    )
    vm_prev: vm_area_struct | None = attrs.field(
        default=None, metadata=shared(guard=_lock_of_list, reads="unseen")
    )


def _mmap_lock_of(mm: mm_struct) -> RwSem | None:
    """None for an mm that nobody runs: a fork's child that is being made, or what is torn down."""
    return mm.mmap_lock if mm.mm_users and mm in mm.kernel.active_mm else None


@attrs.define(eq=False, slots=True)
class mm_struct:
    """One address space.

    ``pgd``: physical address of the root table. ``layout``: its shape (an arch may grow it at run time).
    ``vmas``: start address -> vma, ordered. Counters as in Linux: ``map_count`` vmas, ``total_vm`` pages
    mapped by vmas, ``anon_rss`` / ``file_rss`` pages present, ``swapents`` pages in the swap area, ``hiwater_vm`` /
    ``hiwater_rss`` the most there were of each before they last fell, ``nr_tables[level]`` live tables below the root
    by level. ``cpu_mask``: CPUs whose TLB may hold translations of it. ``notifiers``: who else has (``mm.notifier``).
    ``context``: the arch's own state.
    """

    slot: int
    kernel: Kernel[Any]
    mmap_lock: RwSem
    page_table_lock: Spinlock
    generation: int = 0
    serial: int = 0
    pgd: int = 0
    layout: RadixLayout = None  # type: ignore[assignment]  # set by mm_alloc
    vmas: SortedDict = attrs.field(factory=SortedDict)
    mmap: vm_area_struct | None = attrs.field(
        default=None, metadata=shared(guard=_mmap_lock_of, reads="guarded")
    )
    mmap_cache: vm_area_struct | None = None
    map_count: int = attrs.field(default=0, metadata=shared(guard=_mmap_lock_of, reads="guarded"))
    task_size: int = 0
    mmap_base: int = 0
    free_area_cache: int = 0
    cached_hole_size: int = 0
    total_vm: int = attrs.field(default=0, metadata=shared(guard=_mmap_lock_of, reads="guarded"))
    anon_rss: int = 0
    file_rss: int = 0
    swapents: int = 0
    hiwater_rss: int = 0
    hiwater_vm: int = 0
    nr_tables: list[int] = attrs.field(factory=list)
    start_brk: int = 0
    brk: int = 0
    start_stack: int = 0
    mm_users: int = attrs.field(default=0, metadata=shared())
    mm_count: int = 0
    cpu_mask: int = attrs.field(default=0, metadata=shared(shootdown=True))
    tlb_flush_pending: int = attrs.field(default=0, metadata=shared(shootdown=True))
    notifiers: list[Any] = attrs.field(factory=list)
    exe_file: File | None = None
    context: Any = attrs.field(default=None, metadata=owned())
    last_cpu: int = 0


@attrs.define(eq=False, slots=True)
class GatherBatch:
    """Pages queued by a gather: ``pfns[:nr]``. ``frame``: pfn of the page that holds it, -1 for the bundle."""

    pfns: NDArray[np.int64]
    frame: int
    nr: int = 0


@attrs.define(eq=False, slots=True)
class mmu_gather:
    """Pages and tables whose translations must die before they do. Lives from tlb_gather_mmu to tlb_finish_mmu.

    ``start``/``end``: hull of what was cleared since the last flush (``end`` 0 with ``need_flush`` means the
    top). ``freed_tables``: walk caches must be invalidated too. ``fast_mode``: free at once, flush later.
    ``cleared_levels``: bit per table level at which entries were cleared. ``arch``: the arch's own state.
    """

    mm: mm_struct
    fullmm: bool
    batches: list[GatherBatch]
    fast_mode: bool = False
    need_flush: bool = False
    freed_tables: bool = False
    cleared_levels: int = 0
    start: int = 0
    end: int = 0
    queued: int = 0
    active: int = 0
    """Index in ``batches`` of the one that takes pages."""
    limit: int = 0
    """Pages that a gather of the arch's own took, one per CPU, until Linux 5.2; 0: it had the generic one."""
    table_limit: int = 0
    """Tables that a list of the arch's own took, beside each of these; 0: none. Earlier generations ask for the two."""
    tables: list[tuple[int, int]] = attrs.field(factory=list)
    """(level, physical address) of unhooked tables that wait for the flush, and for RCU where needed."""
    table_batch: int = -1
    """Frame that holds this list where its tables wait for RCU; -1: none."""
    vma: vm_area_struct | None = None
    work: int = 0
    """What a loop over ptes may still do before it looks who waits, in bytes (Linux: zap_bytes, zap_work)."""
    arch: Any = None


@attrs.define(eq=False, slots=True)
class FreeFrames:
    """The page allocator's state: one LIFO list per CPU and a bump pointer over never-used frames.

    ``stacks[cpu][:nr[cpu]]`` are free pfns, last freed on top. ``by_order``: free blocks of 2**order frames.
    ``free``: frames nobody holds, wherever they are.
    """

    stacks: list[NDArray[np.int64]]
    nr: list[int]
    by_order: dict[int, list[int]]
    bump: int
    limit: int
    free: int
    pagevecs: list[list[int]]
    """Per CPU: pages on their way to the LRU; each holds a reference."""
    lru: NDArray[np.int64]
    """Head, tail and length of the LRU list threaded through LRU_NEXT and LRU_PREV."""
    zero_page: int = 0
    fail_next: Callable[[str], bool] | None = None
    """Fault injection: asked at each allocation, of frames and of slab objects, by its site's name (``anon``, ``file``,
    ``huge``, ``gather``, ``table_batch``, ``table.pte`` and so on by level, a slab's name); True makes it fail."""


Ops = TypeVar("Ops")


@attrs.define(eq=False, slots=True)
class Kernel(Generic[Ops]):
    """One machine's kernel: carries everything, does nothing. ``ops`` is the arch (``hooks.ArchOps``)."""

    description: MachineDescription
    ram: Ram
    frames: Frames
    free: FreeFrames
    cpus: tuple[Cpu, ...]
    sched: Sched
    events: Events
    ops: Ops
    shape: Shape
    variants: Any = None
    arch_state: Any = None
    """State of the arch that belongs to the machine (ASID allocator, hash table, ...)."""
    init_mm: mm_struct | None = None
    mms: Slab[mm_struct] = None  # type: ignore[assignment]  # set when the kernel boots
    vmas: Slab[vm_area_struct] = None  # type: ignore[assignment]
    mappings: Slab[address_space] = None  # type: ignore[assignment]
    anon_vmas: Slab[anon_vma] = None  # type: ignore[assignment]
    serial: int = 0
    vm_committed: int = 0
    """Pages promised to programs (``mm.commit``)."""
    one_entry: EntryRun = attrs.field(factory=lambda: np.zeros(1, dtype=np.uint64))
    """A run of one entry to hand to ``set_pte`` at a fault; making an array each time took 4 % of one."""
    active_mm: list[mm_struct | None] = attrs.field(factory=list)
    """Per CPU: the mm whose tables it has loaded."""
    swap: SwapArea | None = None
    """None: no page leaves memory but with its last user."""
    reclaim: Callable[[], bool] | None = None
    """Where there is a swap area: frees some pages, or says that there are none (mm.reclaim)."""
    page_locks: dict[int, Mutex] = attrs.field(factory=dict[int, Mutex])
    """By frame; of those that were ever locked."""
    lazy: int = 0
    """CPUs that keep ``active_mm`` loaded although nobody there runs in it: idle, or in a kernel thread."""
    secondary_mmus: list[Any] = attrs.field(factory=list)
    """Devices with translations of their own (``mm.secondary_mmu``)."""
