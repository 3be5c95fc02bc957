"""A CPU: load, store and fetch through TLBs and tables; faults go to whoever plugged in ``vectors``.

A CPU knows no kernel and no mm. It has a root register, an address-space tag (ASID) and a privilege, and it
reaches software only through ``vectors.fault``: when that returns, the access is made again, by the
hardware; a handler never fills a TLB.

Bulk work goes through ``replay``: compiled, it leaves the kernel once per fault. First reading: ``Cpu.load``,
``Cpu.replay`` and ``Cpu._fault``; the rest is registers and counters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from polymmu.description.model import TlbSpec, WalkCacheSpec
from polymmu.errors import UserMistake
from polymmu.hardware import state as at
from polymmu.hardware.ahead_kernels import look_ahead
from polymmu.hardware.entry import Access, Privilege, WalkFault
from polymmu.hardware.kernels import replay, replay_runs
from polymmu.hardware.ram import NONZERO, Frames, Ram
from polymmu.hardware.sweep_kernels import EVERYWHERE, sweep
from polymmu.hardware.tlb import FIRST_SEEN_SLOTS, build, clear_front, grow, new_seen
from polymmu.hardware.upper_kernels import keep_upper
from polymmu.hardware.walk import Translation, Walk, needs, signed

__all__ = ["NOTHING_AHEAD", "Cpu", "InternalError", "Upcoming", "Vectors", "Watcher"]

Upcoming = Callable[[int, int, int], npt.NDArray[np.uint64]]
Columns = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.uint8]]

WALK_CACHE_SCOPES = {"none": 0, "asid": 1, "path": 2, "all": 3}
NOTHING_AHEAD: npt.NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
RUN_WINDOW = 4096  # page runs that a look-ahead may see
MAX_SKIPPED = 15  # faults without a look-ahead after several that found nothing


class InternalError(RuntimeError):
    """The emulated software and hardware cannot make progress: our own fault, never the user's."""


class Vectors(Protocol):
    """Where a CPU's faults go."""

    def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
        """Called when an access to ``va`` was refused with the architecture's ``code``.

        Return to have the access made again; raise to refuse it. ``upcoming(low, high, limit)`` gives the
        pages in [low, high) that the same kind of access will touch for the first time next, in that
        order. A handler may map all of them now; it then needs no further fault, and every count is as if
        each had faulted. The array is valid until the next call.
        """
        ...


class Watcher(Protocol):
    """Who is told of every invalidation, before and after; changes nothing."""

    def before_invalidate(self, cpu: Cpu, asid: int | None, start: int | None, end: int | None) -> None:
        """Called with the arguments of ``Cpu.invalidate`` before anything is dropped."""
        ...

    def after_invalidate(self, cpu: Cpu, dropped: int) -> None:
        """Called with its result."""
        ...


class _NoVectors:
    """Software that handles nothing."""

    def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
        raise InternalError(f"cpu {cpu.index}: fault {code:#x} at {va:#x} and no software to handle it")


class Cpu:
    """One CPU. ``index`` is its number; ``vectors`` is the software it traps into."""

    def __init__(
        self,
        index: int,
        ram: Ram,
        frames: Frames,
        tlbs: Mapping[str, TlbSpec],
        walk_caches: Mapping[str, WalkCacheSpec],
        translation: Translation,
        seed: int = 0,
    ) -> None:
        self.index = index
        self.ram = ram
        self.frames = frames
        self.translation = translation
        self.vectors: Vectors = _NoVectors()
        self.watcher: Watcher | None = None
        self.to_user: Callable[[Cpu], None] | None = None
        """Told before accesses of user code are made, and made again after a fault: a sanitizer's moment."""
        self.interrupts_enabled = True
        self.position = 0
        """Index in the batch of the access that faulted last."""
        state = build(tlbs, walk_caches, translation, seed)
        self._words = state.words
        self._view = memoryview(state.words)  # type: ignore[arg-type]
        self._tlbs = state.tlbs
        self._seen = new_seen(FIRST_SEEN_SLOTS, self._words)
        self._page_size = 1 << translation.page_shift
        self._words[at.RAM_BYTES] = ram.size
        self._words[at.ROOT] = -1  # nothing is mapped before a root is loaded
        self._batch: Columns | None = None
        self._runs: tuple[npt.NDArray[Any], ...] | None = None
        self._addresses: object = None
        self._stop = 0
        self._last_fault: list[int] = []
        self._repeats = 0
        self._fruitless = self._searches_to_skip = 0
        self._one_op = np.zeros(1, dtype=np.uint8)
        self._one_address = np.zeros(1, dtype=np.int64)
        self._one_size = np.ones(1, dtype=np.uint8)
        self.privilege = Privilege.USER

    # --- registers
    @property
    def root(self) -> int:
        """Physical address of the top table; -1 before one was loaded."""
        return self._view[at.ROOT]

    @property
    def asid(self) -> int:
        """The tag that TLB entries are filled and found with."""
        return self._view[at.ASID]

    @property
    def privilege(self) -> Privilege:
        """Who runs: decides which rights an access needs."""
        return Privilege(self._view[at.PRIVILEGE])

    @privilege.setter
    def privilege(self, privilege: Privilege) -> None:
        self._view[at.PRIVILEGE] = privilege
        self._words[at.NEED : at.NEED + 4] = needs(privilege)
        clear_front(self._words)

    @property
    def space(self) -> int:
        """Which address space is loaded, as ``load_root`` was told."""
        return self._view[at.SPACE]

    @property
    def mmu(self) -> npt.NDArray[np.int64]:
        """The MMU's own registers and buffers, as its miss routine sees them at ``MMU``; write to change them."""
        return self._words[at.MMU : at.MMU + at.MMU_WORDS]

    def load_asids(self, asids: Sequence[int]) -> None:
        """Load eight ASIDS, by an address's top three bits (ia64's region registers). Flushes nothing."""
        self._words[at.ASIDS : at.ASIDS + 8] = asids
        clear_front(self._words)

    def load_root(self, root_pa: int, asid: int = 0, space: int | None = None) -> None:
        """Load the root register and the ASID. Flushes nothing; reads what the MMU keeps in registers.

        ``space`` identifies the address space where the root's address is not enough (it may be reused): a
        kernel gives the mm's ``serial``. It decides which misses count as compulsory, and tells observers which
        mm a flush is for. BadRoot if the MMU refuses the root.
        """
        view = self._view
        for n, entry in enumerate(self.translation.latch_root(self.ram, root_pa)):
            view[at.ROOT_ENTRIES + n] = signed(entry)
        if root_pa != view[at.ROOT] or asid != view[at.ASID]:
            clear_front(self._words)
            self._words[at.ASIDS : at.ASIDS + 8] = asid
        view[at.ROOT] = root_pa
        view[at.ASID] = asid
        view[at.SPACE] = root_pa if space is None else space

    # --- faults
    @property
    def fault_kind(self) -> WalkFault:
        """Why the last access that faulted was refused."""
        return WalkFault(self._view[at.FAULT_KIND])

    @property
    def fault_access(self) -> Access:
        """What the last access that faulted wanted."""
        return Access(self._view[at.FAULT_ACCESS])

    def _fault(self, position: int) -> None:
        """Make room in a table, or let software handle the fault the kernel was left with."""
        fault = self._view[at.STATUS : at.FAULT_WORDS].tolist()
        if fault[0] == at.GROW:
            self._seen = grow(self._seen, self._words)
            return
        fault[0] = self.position = position
        code, va = fault[at.FAULT_CODE - at.STATUS], fault[at.FAULT_VA - at.STATUS] & (1 << 64) - 1
        # Once it may come again: an older translation, whose flush is still to come, hides what the handler entered;
        # the handler finds nothing to do then and drops it (Linux: flush_tlb_fix_spurious_fault).
        self._repeats = self._repeats + 1 if fault == self._last_fault else 0
        if self._repeats > 1:
            raise InternalError(
                f"cpu {self.index}: {self.fault_access.name.lower()} at {va:#x} faults again with code "
                f"{code:#x} ({self.fault_kind.name}) after the handler returned"
            )
        self._last_fault = fault
        self.vectors.fault(self, code, va, self._upcoming)
        if self.to_user is not None:
            self.to_user(self)

    def _upcoming(self, low: int, high: int, limit: int) -> npt.NDArray[np.uint64]:
        """See ``Vectors.fault``. Where searches find nothing, ever fewer faults make one."""
        if not self.translation.looks_ahead:
            return NOTHING_AHEAD
        if self._searches_to_skip:
            self._searches_to_skip -= 1
            return NOTHING_AHEAD
        words = self._words
        start, stop = self.position, self._stop
        if self._runs is not None:
            stop = min(stop, start + RUN_WINDOW)
            ops, addresses, sizes = self._accesses_of_runs(start, stop)
            start, stop = 0, stop - start
        elif self._batch is not None:
            ops, addresses, sizes = self._batch
        else:
            return NOTHING_AHEAD
        limit = min(limit, at.MAX_PENDING)
        found = look_ahead(
            ops, addresses, sizes, start, stop, words, self.ram.words, signed(low), signed(high), limit
        )
        self._view[at.PENDING_HEAD] = 0
        self._view[at.PENDING_TAIL] = found
        if not found:
            self._fruitless = min(2 * self._fruitless + 1, MAX_SKIPPED)
            self._searches_to_skip = self._fruitless
            return NOTHING_AHEAD
        self._fruitless = 0
        pages = words[at.PENDING : at.PENDING + 2 * found : 2] << self.translation.page_shift
        return pages.view(np.uint64)

    def _accesses_of_runs(self, start: int, stop: int) -> Columns:
        """Page runs as single accesses to their pages."""
        assert self._runs is not None
        pages, data, writes, _ = self._runs
        window = slice(start, stop)
        ops = np.where(data[window] == 0, 0, np.where(writes[window] == 0, 1, 2)).astype(np.uint8)
        return ops, pages[window] << self.translation.page_shift, np.ones(stop - start, dtype=np.uint8)

    def suspend(self) -> tuple[Any, ...]:
        """What a program needs to go on after another one ran here while its fault was handled: for ``resume``."""
        view = self._view
        batch = self._batch, self._runs, self._addresses, self._stop
        single = view[at.RESUME], int(self._one_op[0]), int(self._one_address[0])
        return (*batch, self.position, self._last_fault, self._repeats, *single)

    def resume(self, suspended: tuple[Any, ...], *, may_fault_again: bool) -> None:
        """Undo ``suspend``. ``may_fault_again``: others ran meanwhile and may have undone what the handler did."""
        self._batch, self._runs, self._addresses, self._stop = suspended[:4]
        self.position, self._last_fault, self._repeats, self._view[at.RESUME] = suspended[4:8]
        self._one_op[0], self._one_address[0] = suspended[8:]
        self._view[at.PENDING_HEAD] = self._view[at.PENDING_TAIL] = 0
        if may_fault_again:
            self._last_fault = []

    # --- one access
    def _translate(self, access: Access, va: int, size: int) -> list[tuple[int, int]]:
        """Access every page of [va, va + size); the physical pieces as (address, bytes).

        One lookup per page, counted as one access.
        """
        if self.to_user is not None:
            self.to_user(self)
        view = self._view
        self._batch = self._runs = None
        pieces: list[tuple[int, int]] = []
        self._one_op[0] = access
        end = va + size
        while va < end:
            self._one_address[0] = signed(va)
            self._last_fault = []
            view[at.RESUME] = 0
            while not replay(
                self._one_op, self._one_address, self._one_size, 0, 1, self._words, self._seen, self.ram.words
            ):
                self._fault(0)
            if pieces:
                view[at.ACCESSES + access] -= 1
            length = min(end, (va | (self._page_size - 1)) + 1) - va
            pieces.append((view[at.PA], length))
            va += length
        return pieces

    def speculate(self, va: int) -> bool:
        """Fetch the translation of ``va`` for a load, as hardware may at any time; whether there was one.

        A fault is nobody's business, and drops nothing: that comes with the exception.
        """
        self._view[at.RESUME] = 0
        drops, self._view[at.FAULT_DROPS] = self._view[at.FAULT_DROPS], 0
        self._one_op[0], self._one_address[0] = Access.LOAD, signed(va)
        words, ram = self._words, self.ram.words
        while not replay(self._one_op, self._one_address, self._one_size, 0, 1, words, self._seen, ram):
            if self._view[at.STATUS] != at.GROW:
                self._view[at.RESUME] = 0
                break
            self._seen = grow(self._seen, self._words)
        else:
            self._view[at.FAULT_DROPS] = drops
            return True
        self._view[at.FAULT_DROPS] = drops
        return False

    def speculate_tables(self, va: int) -> None:
        """As ``speculate``; where no page is mapped, caches may have the tables on the way all the same."""
        if not self.speculate(va) and self._view[at.FAULT_DROPS]:
            keep_upper(self._words, signed(va), self._view[at.FAULT_LEVEL])

    def _checked(self, va: int, size: int) -> None:
        if va < 0 or size < 0 or va + size > 1 << 64:
            raise UserMistake(f"address {va:#x}+{size} is outside the 64-bit address space")

    def load(self, va: int, size: int) -> bytes:
        """The ``size`` bytes at ``va``, as one load."""
        self._checked(va, size)
        return b"".join(self.ram.read(pa, n) for pa, n in self._translate(Access.LOAD, va, size))

    def fetch(self, va: int, size: int) -> bytes:
        """The ``size`` bytes at ``va``, as one instruction fetch."""
        self._checked(va, size)
        return b"".join(self.ram.read(pa, n) for pa, n in self._translate(Access.FETCH, va, size))

    def store(self, va: int, data: bytes) -> None:
        """Store ``data`` at ``va``, as one store: all of it, or nothing if any page is refused."""
        self._checked(va, len(data))
        done = 0
        for pa, n in self._translate(Access.STORE, va, len(data)):
            self.ram.write(pa, data[done : done + n])
            self.frames.flags[pa >> self.frames.page_shift] |= NONZERO
            done += n

    def translate(self, va: int, access: Access = Access.LOAD, privilege: Privilege | None = None) -> Walk:
        """What the tables under the current root say about ``va``; no TLB is asked, nothing changes."""
        asked = self.privilege if privilege is None else privilege
        return self.translation.walk(self.ram, self.root, va, access, asked, self.asid)

    # --- many accesses
    def replay(
        self,
        op: npt.NDArray[np.uint8],
        vaddr: npt.NDArray[np.uint64],
        size: npt.NDArray[np.uint8],
        start: int,
        stop: int,
    ) -> int:
        """Do the accesses [start, stop) of a trace; returns ``stop``.

        ``op``: 0 fetch, 1 load, 2 store, 3 modify; ``size`` in bytes, at most one page. When the fault
        handler raises, ``position`` is the index of the access it refused; the halves of a page-crossing
        access that were done stay done if the same arrays are replayed again from there.
        """
        self._enter(vaddr, start, stop, min(len(op), len(vaddr), len(size)))
        self._runs = None
        self._batch = ops, addresses, sizes = (
            _column(op, np.uint8),
            _column(vaddr, np.uint64).view(np.int64),
            _column(size, np.uint8),
        )
        words, view, ram = self._words, self._view, self.ram.words
        while True:
            start = replay(ops, addresses, sizes, start, stop, words, self._seen, ram)
            if not view[at.STATUS]:
                return start
            self._fault(start)

    def replay_runs(
        self,
        vpn: npt.NDArray[np.uint64],
        data: npt.NDArray[np.uint8],
        write: npt.NDArray[np.uint8],
        count: npt.NDArray[Any],
        start: int,
        stop: int,
    ) -> int:
        """Do the page runs [start, stop); returns ``stop``.

        ``vpn``: base-page numbers; ``data``: 0 fetches, 1 loads or stores; ``write``: 1 if any access of
        the run wrote (the run then counts as stores); ``count``: touches. Exact where fetches and data have
        TLBs of their own at level 1.
        """
        self._enter(vpn, start, stop, min(len(vpn), len(data), len(write), len(count)))
        self._batch = None
        self._runs = pages, kinds, writes, counts = (
            _column(vpn, np.uint64).view(np.int64),
            _column(data, np.uint8),
            _column(write, np.uint8),
            _column(count, np.uint32),
        )
        words, view, ram = self._words, self._view, self.ram.words
        while True:
            start = replay_runs(pages, kinds, writes, counts, start, stop, words, self._seen, ram)
            if not view[at.STATUS]:
                return start
            self._fault(start)

    def _enter(self, addresses: object, start: int, stop: int, length: int) -> None:
        """Begin a batch; keep the part of an access to resume at only where the batch is the same."""
        if self.to_user is not None:
            self.to_user(self)
        if not 0 <= start <= stop <= length:
            raise UserMistake(f"accesses [{start}, {stop}) are not inside the batch of {length}")
        if addresses is not self._addresses or start != self.position:
            self._view[at.RESUME] = 0
        self._addresses = addresses
        self._stop = stop
        self._last_fault = []
        self._fruitless = self._searches_to_skip = 0
        self._view[at.PENDING_HEAD] = self._view[at.PENDING_TAIL] = 0

    # --- what is cached
    @property
    def words(self) -> npt.NDArray[np.int64]:
        """Everything the hardware knows, as ``hardware.state`` maps it: for those who only look."""
        return self._words

    def invalidate(
        self,
        *,
        asid: int | None,
        start: int | None = None,
        end: int | None = None,
        include_global: bool = False,
        tlb: bool = True,
        walk_caches: str = "asid",
        first_level_only: bool = False,
    ) -> int:
        """Drop what is cached; returns how many entries of TLBs and paging-structure caches went.

        ``asid`` None: every address space. ``start`` alone: its page; both: [start, end), ``end`` 0 being
        the top; neither: every address. A large page goes whole, with all its fragments. ``walk_caches``:
        ``none``, ``path`` (entries on the way to the range), ``asid`` (all of the address space) or
        ``all``. ``first_level_only``: only TLBs of level 1 (POWER's slbie and its ERATs).
        """
        low, last = self._range(start, end)
        if last < low:
            return 0
        watcher = self.watcher
        if watcher is not None:
            watcher.before_invalidate(self, asid, start, end)
        dropped = int(
            sweep(
                self._words,
                self.ram.words,
                False,
                EVERYWHERE if asid is None else asid,
                int(include_global) if tlb else -1,
                WALK_CACHE_SCOPES[walk_caches],
                signed(low),
                signed(last),
                first_level_only,
            )
        )
        if watcher is not None:
            watcher.after_invalidate(self, dropped)
        return dropped

    def count_stale(self, asid: int | None, root: int, start: int, end: int, walk_caches: bool = True) -> int:
        """How many cached entries for [start, end) say more than the tables do.

        Those count that ``asid`` could use (None: what is loaded, by each address's own ASID). A TLB
        entry is stale if its page is no longer mapped, elsewhere, or with fewer rights; an entry of a
        paging-structure cache (asked unless ``walk_caches`` is False) if its table is no longer the one
        linked, or grants more.
        """
        low, last = self._range(start, end)
        if last < low:
            return 0
        self._view[at.WALK_ROOT] = root
        space = EVERYWHERE if asid is None else asid
        words, ram = self._words, self.ram.words
        return int(sweep(words, ram, True, space, 0, int(walk_caches), signed(low), signed(last), False))

    def _range(self, start: int | None, end: int | None) -> tuple[int, int]:
        """First and last address of a range."""
        if start is None:
            return 0, (1 << 64) - 1
        if end is None:
            return start, start | (self._page_size - 1)
        return start, (end or 1 << 64) - 1

    # --- counters
    def counters(self) -> dict[str, Any]:
        """Every count since the last reset, as plain values."""
        view = self._view
        names = {"hits": at.D_HITS, "misses": at.D_MISSES, "compulsory": at.D_COMPULSORY}
        names |= {"evictions": at.D_EVICTIONS, "flushed": at.D_FLUSHED}
        return {
            "accesses": {kind.name.lower(): view[at.ACCESSES + kind] for kind in Access},
            "tlb": {
                tlb: {name: view[home + place] for name, place in names.items()}
                for tlb, home in self._tlbs.items()
            },
            "walk": {
                "count": view[at.WALKS],
                "references": view[at.REFERENCES],
                "cache_hits": view[at.WALK_CACHE_HITS],
                "ad_updates": view[at.AD_UPDATES],
                **{name: view[at.EVENTS + n] for n, name in enumerate(self.translation.event_costs)},
            },
        }

    def reset_counters(self) -> None:
        """Set every count to zero, and forget which pages were ever touched."""
        self._words[at.ACCESSES : at.AD_UPDATES + 1] = 0
        self._words[at.EVENTS : at.EVENTS + at.MAX_EVENTS] = 0
        for home in self._tlbs.values():
            self._words[home + at.D_HITS : home + at.D_FLUSHED + 1] = 0
        self._seen = new_seen(FIRST_SEEN_SLOTS, self._words)


def _column(values: npt.NDArray[Any], kind: type) -> npt.NDArray[Any]:
    """A column as the kernels want it; copies only what has another type, gaps, or is read-only."""
    column: npt.NDArray[Any] = np.ascontiguousarray(values, dtype=kind)
    return column if column.flags.writeable else column.copy()
