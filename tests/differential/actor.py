"""One program that calls the kernel and knows what must come of it: what it finds, what is refused.

Every operation takes three numbers, from which it takes what it needs, so that anybody can drive it. It changes the
machine first, then the model, and compares the two. In between only pages of its own window are touched, so several
actors may be at it at once, each in a window of its own (``alone`` False); one that is alone also takes what addresses
the kernel chooses.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

import attrs

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hardware.ram import NONZERO
from polymmu.machine import CpuHandle, Machine
from polymmu.structs import PG_DIRTY
from tests.differential.model import Content, Known, Page, Space

__all__ = ["Actor", "refused"]

PROTS = ("rw", "rw", "rw", "rwx", "r", "rx", "")
KINDS = ("private", "private", "shared", "file", "shared file")
FILE_PAGES = 12
LONGEST = 10
"""Pages that one call is about at most."""


def refused(number: int, call: Callable[[], object]) -> None:
    """``call`` fails with errno ``number``."""
    try:
        call()
    except SyscallError as refusal:
        assert refusal.errno == number, refusal
    else:
        raise AssertionError(f"not refused with errno {number}")


@attrs.define(eq=False)
class Actor:
    machine: Machine
    cpu: CpuHandle
    space: Space
    window: range
    """Pages that fixed addresses are in."""
    files: list[Known]
    everybody: list[Space]
    alone: bool = True
    huge_size: int = 0
    huge_file: Known | None = None
    pins: list[int] = attrs.field(factory=list[int])

    @property
    def size(self) -> int:
        return self.machine.page_size

    @property
    def pages(self) -> dict[int, Page]:
        return self.space.pages

    def act(self, name: str, a: int, b: int, c: int) -> None:
        """The operation called so."""
        operation: Callable[[int, int, int], None] = getattr(self, name)
        operation(a, b, c)

    # ------------------------------------------------------------------ choosing
    def _mine(self) -> list[int]:
        return sorted(n for n in self.pages if self.alone or n in self.window)

    def _pick(self, a: int) -> int:
        """A page to begin at: a mapped one, every eighth time any of the window."""
        mine = self._mine()
        if not mine or a % 8 == 0:
            return self.window[a // 8 % len(self.window)]
        return mine[a // 8 % len(mine)]

    def _some(self, a: int, b: int) -> range:
        """Some pages from a picked one on, all of the window where others are beside it, none of a huge page."""
        first = self._pick(a)
        ends = [at // self.size for at in self.space.huge if at > first * self.size]
        if not self.alone:
            ends.append(self.window.stop)
        return range(first, min([first + 1 + b % LONGEST, *ends]))

    def _mapping(self, page: int) -> range | None:
        """The one mapping that has this page, as /proc/PID/maps shows it."""
        for start, end, _ in self.space.mm.mappings():
            if start <= page * self.size < end:
                return range(start // self.size, end // self.size)
        return None

    # ------------------------------------------------------------------ mapping
    def mmap(self, a: int, b: int, c: int) -> None:
        kind, prot = KINDS[c % 5], PROTS[c // 5 % 7]
        shared, populate = kind.startswith("shared"), c // 35 % 4 == 0
        index, length = b // LONGEST % 8, 1 + b % LONGEST
        handle, content = None, None
        if kind.endswith("file"):
            known = self.files[a // 4 % len(self.files)]
            handle, content = known.handle, known.content
        elif shared:
            content, index = Content(2 * length), 0
        chosen = self.alone and a % 4 == 0
        first = self.window[a // 8 % (len(self.window) - length)]
        at = self.space.mm.mmap(
            length * self.size,
            prot,
            at=None if chosen else first * self.size,
            fixed=not chosen,
            shared=shared,
            file=handle,
            offset=index * self.size if handle is not None else 0,
            populate=populate,
        )
        assert not at % self.size
        if chosen:
            first = at // self.size
            assert not any(n in self.pages for n in range(first, first + length))
        assert at == first * self.size
        for n in range(length):
            page = Page(prot, shared, content, index + n, index + n)
            if populate and not shared and page.may("w"):
                page = attrs.evolve(page, own=page.shown)
            self.pages[first + n] = page

    def munmap(self, a: int, b: int, c: int) -> None:
        some = self._some(a, b)
        self.space.mm.munmap(some.start * self.size, len(some) * self.size)
        self._forget(some)

    def _forget(self, some: Iterable[int]) -> None:
        for n in some:
            self.pages.pop(n, None)

    def mprotect(self, a: int, b: int, c: int) -> None:
        some, prot = self._some(a, b), PROTS[c % 7]
        self._store(some.start, b"in")  # into the TLB, so that a flush that is missing shows below
        until = next((n for n in some if n not in self.pages), some.stop)

        def protect() -> None:
            self.space.mm.mprotect(some.start * self.size, len(some) * self.size, prot)

        if until == some.stop:
            protect()
        else:
            refused(errno.ENOMEM, protect)
        for n in range(some.start, until):
            self.pages[n] = attrs.evolve(self.pages[n], prot=prot)
        self._store(some.start, b"by")

    def madvise(self, a: int, b: int, c: int) -> None:
        some = self._some(a, b)

        def drop() -> None:
            self.space.mm.madvise(some.start * self.size, len(some) * self.size, "dontneed")

        if all(n in self.pages for n in some):
            drop()
        else:
            refused(errno.ENOMEM, drop)
        for n in some:
            if n in self.pages:
                self.pages[n] = attrs.evolve(self.pages[n], own=None)

    def brk(self, a: int, b: int, c: int) -> None:
        space, new = self.space, self.space.heap - 1 + a % 9
        old = space.brk
        in_the_way = any(n in space.pages for n in range(old, new + 1))
        there = space.mm.brk(new * self.size) // self.size
        if new < space.heap or (new > old and in_the_way):
            assert there == old
            return
        assert there == new
        space.brk = new
        self._forget(range(new, old))
        for n in range(old, new):
            space.pages[n] = Page("rw")

    # ------------------------------------------------------------------ moving
    def mremap(self, a: int, b: int, c: int) -> None:
        first = self._pick(a)
        mapping = self._mapping(first)
        length, new = 1 + b % LONGEST, 1 + b // LONGEST % LONGEST
        if mapping is None:
            new = max(new, length + 1)  # who shrinks what is not there is not told
            self._mremap_refused(errno.EFAULT, first, length, new)
            return
        length = min(length, mapping.stop - first)
        if c % 4 > 1:
            self._move(first, length, new, self.window[c // 4 % (len(self.window) - new)], again=c % 8 == 7)
            return
        follows = range(first + length, first + new)
        fits = first + length == mapping.stop and self._is_room(follows)
        if not self.alone and follows.stop > self.window.stop:
            return
        if new > length and not fits and (c % 4 == 1 or not self.alone):
            self._mremap_refused(errno.ENOMEM, first, length, new, may_move=False)
            return
        at = self.space.mm.mremap(first * self.size, length * self.size, new * self.size, may_move=c % 4 == 0)
        assert (at == first * self.size) == (new <= length or fits)
        self._moved(first, length, new, at // self.size)

    def _is_room(self, pages: range) -> bool:
        """Whether nothing is mapped there, and something could be."""
        taken = [
            *self.machine.kernel.shape.limits.holes,
            *((at, at + self.huge_size) for at in self.space.huge),
        ]
        start, end = pages.start * self.size, pages.stop * self.size
        return not any(n in self.pages for n in pages) and not any(a < end and start < b for a, b in taken)

    def _move(self, first: int, length: int, new: int, to: int, again: bool) -> None:
        if first < to + new and to < first + length:
            self._mremap_refused(errno.EINVAL, first, length, new, to=to * self.size)
            return
        if again:
            self._map_again(first, new, to)
            return
        at = self.space.mm.mremap(first * self.size, length * self.size, new * self.size, to=to * self.size)
        assert at == to * self.size
        self._moved(first, length, new, to)

    def _map_again(self, first: int, new: int, to: int) -> None:
        """mremap of no bytes: a second mapping of a shared one."""
        page = self.pages[first]
        if to <= first < to + new:
            return
        self._forget(range(to, to + new))
        if not page.shared:
            self._mremap_refused(errno.EINVAL, first, 0, new, to=to * self.size)
            return
        at = self.space.mm.mremap(first * self.size, 0, new * self.size, to=to * self.size)
        assert at == to * self.size
        for n in range(new):
            self.pages[to + n] = attrs.evolve(page, index=page.linear + n, linear=page.linear + n)

    def _mremap_refused(self, number: int, first: int, length: int, new: int, **where: int) -> None:
        def call() -> None:
            self.space.mm.mremap(
                first * self.size,
                length * self.size,
                new * self.size,
                may_move=bool(where.get("may_move", True)),
                to=where.get("to"),
            )

        refused(number, call)

    def _moved(self, first: int, length: int, new: int, to: int) -> None:
        old = [self.pages.pop(first + n) for n in range(length)]
        head = old[0]
        for n in range(new):
            if to == first or not self.alone or to + n in self.window:
                self.pages.pop(to + n, None)
            assert to + n not in self.pages
            number = head.linear + n
            self.pages[to + n] = (
                old[n] if n < length else attrs.evolve(head, own=None, index=number, linear=number)
            )

    def move_tables(self, a: int, b: int, c: int) -> None:
        """Whole page tables' worth of memory moves there and back."""
        layout, mm = self.machine.kernel.shape.layout, self.space.mm
        span = layout.span_of(layout.pmd_level)
        if not self.alone or span > 16 << 20:
            return
        room = mm.mmap(5 * span, "")
        at, to = -(-room // span) * span, -(-room // span) * span + 2 * span + b % 2 * self.size
        mm.munmap(room, 5 * span)
        mm.mmap(span, at=at, fixed=True)
        places = {at + (a * k + c) % (span // self.size) * self.size: b"%c" % k for k in range(1, 5)}
        for place, data in places.items():
            self.cpu.store(place, data)
        assert mm.mremap(at, span, span, to=to) == to
        for place, data in places.items():
            self._denied("load", place)
            assert self.cpu.load(place - at + to, 1) == data
        mm.mremap(to, span, span, to=at)
        for place, data in places.items():
            assert self.cpu.load(place, 1) == data
            self._denied("load", place - at + to)
        mm.munmap(at, span)

    def remap_file_pages(self, a: int, b: int, c: int) -> None:
        some, index = self._some(a, b), c % FILE_PAGES
        mapping = self._mapping(some.start)

        def remap() -> None:
            self.space.mm.remap_file_pages(
                some.start * self.size, len(some) * self.size, index * self.size, populate=c % 2 == 0
            )

        can = self.machine.kernel.shape.pte.file is not None
        if not can or mapping is None or some.stop > mapping.stop or not self.pages[some.start].shared:
            refused(errno.EINVAL, remap)
            return
        remap()
        for n in some:
            self.pages[n] = attrs.evolve(self.pages[n], index=index + n - some.start)

    # ------------------------------------------------------------------ files and memory in need
    def truncate(self, a: int, b: int, c: int) -> None:
        known, halves = self.files[a % len(self.files)], b % (2 * FILE_PAGES + 1)
        known.handle.truncate(halves * (self.size // 2))
        known.content.cut(halves)
        for space in self.everybody:
            for n, page in space.pages.items():
                if page.content is known.content and page.beyond_the_end:
                    space.pages[n] = attrs.evolve(page, own=None)

    def swap_out(self, a: int, b: int, c: int) -> None:
        some = self._some(a, b)

        def out() -> None:
            self.space.mm.swap_out(some.start * self.size, len(some) * self.size)

        if self.machine.kernel.swap is None:
            refused(errno.EINVAL, out)
        else:
            out()

    def reclaim(self, a: int, b: int, c: int) -> None:
        if self.machine.kernel.swap is not None:
            self.machine.reclaim(1 + b % LONGEST)

    # ------------------------------------------------------------------ accesses
    def store(self, a: int, b: int, c: int) -> None:
        for n in self._some(a, b):
            self._store(n, bytes((1 + c % 255, 1 + c // 255 % 255)), whole=c % 2 == 0)

    def load(self, a: int, b: int, c: int) -> None:
        for n in self._some(a, b):
            self.look(n)

    def fetch(self, a: int, b: int, c: int) -> None:
        n = self._pick(a)
        page = self.pages.get(n)
        if page is None or not page.prot or page.beyond_the_end:
            self._denied("fetch", n * self.size)
        elif page.may("x"):
            assert self.cpu.fetch(n * self.size, 1) == page.shown[:1]

    def gup_fast(self, a: int, b: int, c: int) -> None:
        n, write = self._pick(a), b % 2 == 0
        page = self.pages.get(n)
        try:
            pfn = self.space.mm.gup_fast(n * self.size, write)
        except SegmentationFault:
            assert page is None or not page.may("w" if write else "r")
            return
        assert page is not None
        assert page.may("w" if write else "r")
        if write and not page.shared:
            self.pages[n] = attrs.evolve(page, own=page.shown)
        assert self.machine.kernel.ram.read(pfn * self.size, 1) == page.shown[:1]
        self.pins.append(pfn)
        if c % 4 or len(self.pins) > 3:
            self.space.mm.put(self.pins.pop(0))

    def device_stores(self, a: int, b: int, c: int) -> None:
        """A device stores into a page that is held for it, which meanwhile was to be written out."""
        n = self._pick(a)
        page, kernel = self.pages.get(n), self.machine.kernel
        if page is None or not page.may("w"):
            return
        pfn = self.space.mm.gup_fast(n * self.size, write=True)
        if kernel.swap is not None:
            self.space.mm.swap_out(n * self.size, self.size)
        data = bytes((1 + b % 255,)) + page.shown[1:]
        kernel.ram.write(pfn * self.size, data[:1])
        kernel.frames.flags[pfn] |= NONZERO | PG_DIRTY
        self.space.mm.put(pfn)
        self.pages[n] = page.stored(data)
        self.look(n)

    def _store(self, n: int, data: bytes, whole: bool = True) -> None:
        """Store ``data`` at both ends of page ``n``, or at its start only: its end must then be what it was."""
        page = self.pages.get(n)
        if page is None or not page.may("w"):
            self._denied("store", n * self.size)
            return
        self.cpu.store(n * self.size, data[:1])
        # What is stored behind a file's end is nobody's promise.
        if not whole or (page.shared and page.content is not None and page.content.ends_inside(page.index)):
            data = data[:1] + page.shown[1:]
        else:
            self.cpu.store((n + 1) * self.size - 1, data[1:])
        self.pages[n] = page.stored(data)

    def look(self, n: int) -> None:
        """Page ``n`` shows what it must, or refuses."""
        page = self.pages.get(n)
        if page is None or not page.may("r"):
            self._denied("load", n * self.size)
            return
        self._same(n * self.size, self.size, page)

    def _same(self, at: int, size: int, page: Page) -> None:
        found = self.cpu.load(at, 1) + self.cpu.load(at + size - 1, 1)
        assert found == page.shown, f"{found!r} at {at:#x}, and not {page.shown!r}"

    def _denied(self, access: str, at: int) -> None:
        try:
            if access == "store":
                self.cpu.store(at, b"n")
            elif access == "load":
                self.cpu.load(at, 1)
            else:
                self.cpu.fetch(at, 1)
        except SegmentationFault as fault:
            assert fault.va // self.size == at // self.size
            # A fetch is told from a load only where pages can be kept from being executed.
            assert fault.access == access or (access, fault.access) == ("fetch", "load")
        else:
            raise AssertionError(f"{access} at {at:#x} is not refused")

    # ------------------------------------------------------------------ huge pages
    def huge_map(self, a: int, b: int, c: int) -> None:
        """One huge page comes, or goes."""
        if not self.huge_size or not self.alone:
            return
        space, kind = self.space, c % 4
        if space.huge:
            space.mm.munmap(at := min(space.huge), self.huge_size)
            del space.huge[at]
            return
        shared = kind > 1
        content = Content(2) if kind == 2 else None
        handle = None
        if kind % 2 and self.huge_file is not None:
            handle, content = self.huge_file.handle, self.huge_file.content
        elif kind == 3:
            return
        at = space.mm.mmap(self.huge_size, shared=shared, file=handle, huge=self.huge_size)
        assert not at % self.huge_size
        space.huge[at] = Page("rw", shared, content)

    def huge_use(self, a: int, b: int, c: int) -> None:
        for at, page in self.space.huge.items() if self.alone else ():
            if not page.may("w"):
                self._denied("load" if a % 2 else "store", at)
                continue
            self._same(at, self.huge_size, page)
            if a % 2:
                data = bytes((1 + b % 255, 1 + c % 255))
                self.cpu.store(at, data[:1])
                self.cpu.store(at + self.huge_size - 1, data[1:])
                self.space.huge[at] = page.stored(data)

    def huge_truncate(self, a: int, b: int, c: int) -> None:
        known = self.huge_file
        if known is None or not self.alone:
            return
        known.handle.truncate(b % 2 * self.huge_size)
        known.content.cut(b % 2 * 2)
        for space in self.everybody:
            for at, page in space.huge.items():
                if page.content is known.content and page.beyond_the_end:
                    space.huge[at] = attrs.evolve(page, own=None)

    # ------------------------------------------------------------------ children, and what makes no sense
    def fork_and_look(self, a: int, b: int, c: int) -> None:
        """A child has its parent's pages; what either stores the other does not see. Then the child is gone."""
        child = self.space.mm.fork()
        for n in self._mine():
            self.look(n)
        self.store(a, b, c)
        child.exit()

    def nonsense(self, a: int, b: int, c: int) -> None:
        """Calls that nobody may make, whatever is mapped."""
        mm, size, at = self.space.mm, self.size, self._pick(a) * self.size
        calls: tuple[Callable[[], object], ...] = (
            lambda: mm.mmap(0),
            lambda: mm.mmap(size, at=at + 1, fixed=True),
            lambda: mm.mmap(size, file=self.files[0].handle, offset=1),
            lambda: mm.munmap(at + 1, size),
            lambda: mm.munmap(at, 0),
            lambda: mm.mprotect(at + 1, size, "r"),
            lambda: mm.mremap(at + 1, size, size),
            lambda: mm.mremap(at, size, 0),
            lambda: mm.mremap(at, size, size, may_move=False, to=at + size),
            lambda: mm.madvise(at + 1, size, "dontneed"),
            lambda: mm.remap_file_pages(at, 0, 0),
            lambda: self.files[0].handle.truncate(-1),
        )
        refused(errno.EINVAL, calls[b % len(calls)])
