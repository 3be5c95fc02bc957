"""What a user knows of programs: pages with bytes and rights, files with bytes. No vma, no page table, no frame.

A page's bytes are told by two of them, its first and its last.
"""

from __future__ import annotations

import attrs

from polymmu.machine import FileHandle, Mm

__all__ = ["ZERO", "Content", "Known", "Page", "Space"]

ZERO = bytes(2)


@attrs.define(eq=False)
class Content:
    """What a file holds, by page. ``halves``: its size in half pages, so that it may end inside one."""

    halves: int
    pages: dict[int, bytes] = attrs.field(factory=dict[int, bytes])

    def at(self, index: int) -> bytes:
        return self.pages.get(index, ZERO)

    def has(self, index: int) -> bool:
        return 2 * index < self.halves

    def ends_inside(self, index: int) -> bool:
        return 2 * index + 1 == self.halves

    def cut(self, halves: int) -> None:
        """ftruncate: what is cut off is zero should the file grow again."""
        if halves < self.halves:
            self.pages = {index: data for index, data in self.pages.items() if 2 * index < halves}
            if halves % 2 and halves // 2 in self.pages:
                self.pages[halves // 2] = self.pages[halves // 2][:1] + b"\0"
        self.halves = halves


@attrs.frozen
class Page:
    """A mapped page: ``own`` once it is the program's own copy; before, what ``content`` has at ``index``.

    ``linear``: what it would show in the file's order; another ``index`` comes from remap_file_pages.
    """

    prot: str
    shared: bool = False
    content: Content | None = None
    index: int = 0
    linear: int = 0
    own: bytes | None = None

    @property
    def beyond_the_end(self) -> bool:
        return self.content is not None and not self.content.has(self.index)

    @property
    def shown(self) -> bytes:
        if self.own is not None:
            return self.own
        return self.content.at(self.index) if self.content is not None else ZERO

    def may(self, right: str) -> bool:
        """Whether the page may be read (``r``), stored to (``w``), fetched from (``x``)."""
        return right in self.prot and not self.beyond_the_end

    def stored(self, data: bytes) -> Page:
        """The page after a store."""
        if not self.shared:
            return attrs.evolve(self, own=data)
        assert self.content is not None
        self.content.pages[self.index] = data
        return self


@attrs.define(eq=False)
class Space:
    """One program: its pages by number, its huge pages by address, and the end of its heap, a page number."""

    mm: Mm
    heap: int
    brk: int
    pages: dict[int, Page] = attrs.field(factory=dict[int, Page])
    huge: dict[int, Page] = attrs.field(factory=dict[int, Page])


@attrs.frozen(eq=False)
class Known:
    """A file, and what it must hold."""

    handle: FileHandle
    content: Content
