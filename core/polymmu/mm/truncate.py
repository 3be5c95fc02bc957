"""Cut a file, and take its pages out of every address space that maps them (A1).

``unmap_mapping_range`` walks the vmas that map a file below ``i_mmap_lock`` and may have to let go of it half way.
Each vma therefore remembers in ``vm_truncate_count`` how far it is (``mm.truncate_count``), and every walk begins
anew, skipping what is done. ``RestartCount`` is how Linux 2.6.38 did it, with one hole closed; the machine file names
another class, whose steps are methods, to be asked instead (``kernel.truncate``).

Order of a truncation: size, unmap, drop the pages, unmap again. Between the first unmap and the drop a fault can
still copy a cached page into a private one, which has to go too (A1.1).

First reading: ``do_truncate``; then ``RestartCount.unmap_vma``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator

import attrs

from polymmu.errors import syscall_error
from polymmu.hooks import ArchKernel
from polymmu.mm.pagecache import drop_page_cache
from polymmu.mm.truncate_count import TruncateCounts
from polymmu.mm.zap import ZapDetails, zap_page_range
from polymmu.sched.locks import Mutex, Spinlock
from polymmu.structs import File, address_space, vm_area_struct

__all__ = ["RestartCount", "Unmapping", "do_truncate", "unmap_mapping_range"]

LAST_PAGE = (1 << 63) - 1


def do_truncate(kernel: ArchKernel, file: File, size: int) -> None:
    """Make ``file`` ``size`` bytes long (ftruncate). What is cut off reads as zeroes if the file grows again.

    Raises EINVAL for a part of a huge page.
    """
    if file.huge_size and size % file.huge_size:
        raise syscall_error(
            errno.EINVAL, f"size {size:#x} is no multiple of the file's huge pages of {file.huge_size:#x}"
        )
    mapping = file.mapping
    mapping.i_mutex.lock()
    if size >= file.size:
        file.size = size
    else:
        _shrink(kernel, file, size)
    mapping.i_mutex.unlock()


def _shrink(kernel: ArchKernel, file: File, size: int) -> None:
    mapping = file.mapping
    page_size = kernel.shape.layout.page_size
    kernel.events.truncation_begin(mapping)
    file.size = size
    if file.read_page is not None:
        file.read_page = _cut(file.read_page, size, page_size)
    first = -(-size // page_size)
    unmap_mapping_range(kernel, mapping, first * page_size, 0, True)
    drop_page_cache(kernel, mapping, first)
    # Not before: until it left the cache reclaim could still write a page back.
    written = file.written.items()
    file.written = {n: data[: size - n * page_size] for n, data in written if n * page_size < size}
    if strategy_of(kernel).second_unmap:
        unmap_mapping_range(kernel, mapping, first * page_size, 0, True)
    tail = size % page_size
    partial: int | None = mapping.pages.get(size // page_size) if tail else None
    if partial is not None:
        kernel.ram.write(partial * page_size + tail, bytes(page_size - tail))
    kernel.events.truncation_end(mapping)


def _cut(read_page: Callable[[int], bytes], size: int, page_size: int) -> Callable[[int], bytes]:
    def read(index: int) -> bytes:
        left = size - index * page_size
        return read_page(index)[:left] if left > 0 else b""

    return read


def unmap_mapping_range(
    kernel: ArchKernel, mapping: address_space, start: int, length: int, even_cows: bool
) -> None:
    """Remove every pte that maps bytes [start, start + length) of a file, in every mm. ``length`` 0: to the end.

    ``even_cows``: private copies too (truncation); without it only pages of the cache go (invalidation).
    """
    page_size = kernel.shape.layout.page_size
    first = start // page_size
    last = -(-(start + length) // page_size) - 1 if length else LAST_PAGE
    kernel.events.truncation_begin(mapping)
    strategy_of(kernel).unmap_mapping_range(mapping, first, last, even_cows)
    kernel.events.truncation_end(mapping)


def strategy_of(kernel: ArchKernel) -> RestartCount:
    """The machine's way to truncate."""
    strategy: RestartCount = kernel.variants.truncate
    return strategy


# ------------------------------------------------------------------ the generation
@attrs.define(eq=False)
class Unmapping:
    """One call: file pages ``first`` to ``last`` leave every mm. ``count``: its number."""

    mapping: address_space
    first: int
    last: int
    details: ZapDetails
    count: int = 0


class RestartCount(TruncateCounts):
    """Restart points in the vmas, and one call at a time in a file."""

    since = "2.6.38, and one hole closed that Linux never closed"
    wrong = ""

    second_unmap = True
    """Whether a truncation unmaps again when the pages have left the cache (2.6.23)."""

    def unmap_mapping_range(self, mapping: address_space, first: int, last: int, even_cows: bool) -> None:
        """See the function of this name; ``first`` and ``last`` are pages."""
        # Two calls at once would overwrite each other's restart points, and might never end (Linux 2.6.38, A1.10).
        mapping.unmap_mutex.lock()
        self.unmap(self.call(mapping, first, last, even_cows))
        mapping.unmap_mutex.unlock()

    def punch(self, mapping: address_space, first: int, last: int) -> None:
        """Take the pages ``first`` to ``last`` out of every mm, then out of the cache. ``mapping.hole`` says so."""
        kernel = self.kernel
        page_size = kernel.shape.layout.page_size
        unmap_mapping_range(kernel, mapping, first * page_size, (last - first + 1) * page_size, False)
        drop_page_cache(kernel, mapping, first, last)

    def call(self, mapping: address_space, first: int, last: int, even_cows: bool) -> Unmapping:
        """What is known of a call before it begins."""
        lock = mapping.i_mmap_lock
        details = ZapDetails(
            check_mapping=None if even_cows else mapping,
            first_index=first,
            last_index=last,
            i_mmap_lock=lock,
            need_break=(lambda: self.need_break(lock)) if self.looks() else None,
        )
        return Unmapping(mapping, first, last, details)

    def looks(self) -> bool:
        """Whether to look after each block who waits: alone nobody can, and looking takes as long again as zapping."""
        return self.kernel.sched.runs_tasks

    def unmap(self, call: Unmapping) -> None:
        """The driver (A1.2). The file's size was written before."""
        mapping = call.mapping
        mapping.i_mmap_lock.lock()
        call.count = self.next_count(mapping)
        self.passes(call)
        mapping.i_mmap_lock.unlock()

    def passes(self, call: Unmapping) -> None:
        """Tree before list: with the lock dropped a vma may go from the one to the other, never back."""
        self.tree_pass(call)
        self.list_pass(call)

    def tree_pass(self, call: Unmapping) -> None:
        """Every vma whose pages are in the file's order, the part of it that maps some of the call's.

        Ends: each round completes a vma, which later rounds skip, or moves the restart address inside one.
        """
        while self.walk(call, linear_parts(call)):
            pass

    def list_pass(self, call: Unmapping) -> None:
        """Every other vma, whole: its pages say themselves which they are."""
        nonlinear = call.mapping.i_mmap_nonlinear
        if not nonlinear:
            return
        while self.walk(call, ((vma, vma.vm_start, vma.vm_end) for vma in nonlinear.values())):
            pass

    def walk(self, call: Unmapping, parts: Iterable[tuple[vm_area_struct, int, int]]) -> bool:
        """One round over vmas that are not done yet. True: the lock was dropped, begin again."""
        kernel = self.kernel
        seen, again = 0, False
        for vma, start, end in parts:
            seen += 1
            kernel.sched.spend(kernel.description.costs.entry_update, "i_mmap")
            if not self.is_done(call, vma) and self.unmap_vma(call, vma, start, end):
                again = True
                break
        kernel.events.vmas_visited(call.mapping, seen)
        return again

    def is_done(self, call: Unmapping, vma: vm_area_struct) -> bool:
        """Whether this call has nothing left to do in ``vma``."""
        return vma.vm_truncate_count == call.count

    def unmap_vma(self, call: Unmapping, vma: vm_area_struct, start: int, end: int) -> bool:
        """Zap [start, end) of ``vma`` from where it was left (A1.4). True: the lock was dropped."""
        while True:
            restart = vma.vm_truncate_count
            if self.is_restart_addr(restart) and start < restart:
                start = restart
                if start >= end:  # the rest was split off since, and is a vma of its own
                    vma.vm_truncate_count = call.count
                    return False
            reached = zap_page_range(vma, start, end - start, call.details)
            wanted = self.need_break(call.mapping.i_mmap_lock)
            complete = reached >= end
            if complete:
                vma.vm_truncate_count = call.count
            else:
                self.remember(vma, reached)
            if wanted:
                self.give_way(call.mapping.i_mmap_lock)
                return True
            if complete:
                return False

    def remember(self, vma: vm_area_struct, reached: int) -> None:
        """``vma`` is zapped up to ``reached``."""
        vma.vm_truncate_count = reached

    def need_break(self, lock: Mutex | Spinlock) -> bool:
        """Whether somebody wants this CPU or ``lock`` (A0.4)."""
        sched = self.kernel.sched
        return sched.need_resched() or sched.need_lockbreak(lock)

    def give_way(self, lock: Mutex | Spinlock) -> None:
        """Let others have the lock, and the CPU."""
        lock.unlock()
        self.kernel.sched.cond_resched()
        lock.lock()


def linear_parts(call: Unmapping) -> Iterator[tuple[vm_area_struct, int, int]]:
    """The vmas that map pages of the call in the file's order, and from where to where they do."""
    for vma in call.mapping.i_mmap.overlapping(call.first, call.last):
        shift = vma.vm_mm.layout.page_shift
        pages = (vma.vm_end - vma.vm_start) >> shift
        low, high = max(call.first, vma.vm_pgoff), min(call.last, vma.vm_pgoff + pages - 1)
        if low <= high:
            start = vma.vm_start + (low - vma.vm_pgoff << shift)
            yield vma, start, start + (high - low + 1 << shift)
