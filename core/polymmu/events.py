"""What can be observed: one class of no-op methods. An event per run of entries, never per entry.

Observers subclass ``Observer`` and override what they want to hear. Who listens is settled when a machine is
built: ``Events`` holds one bound callable per event, and an event nobody overrides costs one call of a
function that does nothing.

Every address is a virtual address in bytes unless the name says otherwise; ``mm`` is the mm_struct, typed
loosely because events lie below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Events", "Observer"]


class Observer:
    """Every event, doing nothing. Override the ones you need; raise only to end the run."""

    # --- system calls and faults
    def mm_call_begin(self, mm: Any, name: str) -> None:
        """A memory system call (``mmap``, ``munmap``, ``fork``, ...) starts working on ``mm``."""

    def mm_call_end(self, mm: Any, name: str) -> None:
        """The call that began last has finished, whether it succeeded or not."""

    def fault(self, mm: Any, addr: int, kind: str, n: int) -> None:
        """``n`` faults were handled from ``addr`` on; ``kind``: minor, cow, protection, segv, major (read back)."""

    # --- pages and tables
    def pages_allocated(self, n: int, what: str) -> None:
        """``n`` frames left the allocator; ``what``: anon, file, table, gather, table_batch."""

    def pages_freed(self, n: int) -> None:
        """``n`` frames went back to the allocator."""

    def table_allocated(self, mm: Any, level: int, table: int, size: int) -> None:
        """A table of ``level`` (``size`` bytes at physical address ``table``) was hooked up or became a root."""

    def table_freed(self, mm: Any, level: int, table: int, size: int) -> None:
        """A table was unhooked for good; its frame may still wait in a gather."""

    def table_returned(self, mm: Any, table: int, size: int) -> None:
        """The ``size`` bytes of a table at physical address ``table`` may be handed out again from now on.

        Told by who gives tables back: the frame may live on, where an arch shares it out in fragments.
        """

    # --- files
    def truncation_begin(self, mapping: Any) -> None:
        """Pages of a file (``mapping``: its address_space) are about to leave every mm that maps them."""

    def truncation_end(self, mapping: Any) -> None:
        """The truncation or invalidation that began last for ``mapping`` is done."""

    def vmas_visited(self, mapping: Any, n: int) -> None:
        """A truncation's walk over the vmas of a file ended, or broke off, after ``n`` of them."""

    def page_uncached(self, mapping: Any, index: int, pfn: int) -> None:
        """Page ``index`` of a file, frame ``pfn``, is about to leave the page cache."""

    def page_cleaned(self, pfn: int) -> None:
        """Frame ``pfn`` of a page cache is declared clean: it is about to be written to its file."""

    # --- entries
    def entries_changed(self, mm: Any, start: int, end: int, n: int, what: str) -> None:
        """``n`` present entries in [start, end) lost a right or their page; ``what``: clear, wrprotect, replace.

        ``end`` 0 means the top of the address space.
        """

    def table_unhooked(self, mm: Any, start: int, end: int) -> None:
        """A table covering [start, end) was cut from its parent: walk caches may still reach it."""

    def zap_finds(self, mm: Any, start: int, end: int) -> None:
        """A zap first looks at the entries of [start, end), under their table's lock; it has cleared none yet."""

    # --- gather and flushes
    def gather_end(self, mm: Any) -> None:
        """A gather is over: its last flush and its last free were."""

    def gather_flush(self, mm: Any, pages: int, tables: int) -> None:
        """A gather flushed the TLB and freed what it held."""

    def gather_batch(self, mm: Any, got: bool) -> None:
        """A gather asked for one more batch page without waiting."""

    def flush_issued(self, mm: Any, cpu: int, start: int, end: int, everything: bool) -> None:
        """CPU ``cpu`` is about to invalidate ``mm``'s translations in [start, end); before it happens."""

    def shootdown(self, mm: Any, kind: str, cpus: int) -> None:
        """A flush reached ``cpus`` other CPUs; ``kind``: local (0 CPUs), ipi, broadcast."""

    def entries_visited(self, mm: Any, what: str, n: int) -> None:
        """A range walk looked at ``n`` entries; ``what``: zap, free_pgtables, copy, protect, move."""

    # --- the kernel's own checks
    def bug(self, mm: Any, invariant: str, text: str) -> None:
        """A check of the kernel's own failed (Linux: BUG_ON), which breaks ``invariant``; an AssertionError follows."""

    # --- walks without a lock
    def lockless_read(self, mm: Any, cpu: int, rank: int, entry: int, table: int) -> None:
        """CPU ``cpu`` read the entry at physical address ``entry``, and may go on to ``table`` (-1: it ends there).

        ``rank``: the entry's level counted from the ptes' (-1) up. The root's comes first in a walk. A walk that is
        told of a table, and reads it after it was freed, reads what is somebody else's.
        """

    def page_pinned(self, mm: Any, cpu: int, rank: int, entry: int, pfn: int) -> None:
        """A walk without a lock on CPU ``cpu`` holds frame ``pfn``, found in the entry at physical ``entry``."""

    def page_stored(self, mm: Any, addr: int, pfn: int) -> None:
        """The kernel is about to store to frame ``pfn``, which it holds, in the name of ``mm`` at ``addr``."""

    def swapped_in(self, mm: Any, addr: int, slot: int, pfn: int) -> None:
        """A fault at ``addr`` is about to map frame ``pfn`` for what is in ``slot`` of the swap area."""

    # --- time
    def cycles(self, cpu: int, n: int, what: str) -> None:
        """CPU ``cpu`` spent ``n`` cycles of kernel work on ``what``."""


EVENT_NAMES: tuple[str, ...] = tuple(
    name for name, value in vars(Observer).items() if callable(value) and not name.startswith("_")
)


def _nothing(*args: Any) -> None:
    """What an event does when nobody listens."""


def _fan_out(listeners: tuple[Callable[..., None], ...]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        for listener in listeners:
            listener(*args)

    return call


class Events(Observer):
    """The events of one machine, each already bound to whoever listens to it."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self.observers = tuple(observers)
        self.listeners: dict[str, tuple[Callable[..., None], ...]] = {}
        """Who listens to each event, if anybody does."""
        for name in EVENT_NAMES:
            listening = tuple(
                getattr(observer, name)
                for observer in self.observers
                if getattr(type(observer), name) is not getattr(Observer, name)
            )
            if listening:
                self.listeners[name] = listening
            bound = (
                _nothing if not listening else listening[0] if len(listening) == 1 else _fan_out(listening)
            )
            setattr(self, name, bound)
