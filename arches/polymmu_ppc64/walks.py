"""What this architecture's MMUs have in common for whoever asks them without a compiled kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from polymmu.arch import BASE_SHIFT, Access, EntryReader, Walk, WalkFault

__all__ = ["Mmu", "Path", "Rights", "judged"]

Rights = tuple[bool, bool, bool]
"""Read, write, execute."""
Path = list[tuple[int, int, int]]


@attrs.frozen(kw_only=True)
class Mmu:
    """The part of ``Translation`` that is alike: no walk starts halfway, nothing is read when a root is loaded, and
    hash table and TLBs remember addresses, so nothing is mapped ahead."""

    page_shift: int
    page_shifts: tuple[int, ...]
    path_steps: tuple[tuple[str, int], ...]
    event_costs: Mapping[str, int] = attrs.field(factory=dict[str, int])
    looks_ahead: bool = False

    def table_shifts(self) -> Mapping[int, tuple[int, int]]:
        return {}

    def latch_root(self, ram: EntryReader, root: int) -> tuple[int, ...]:
        return ()

    def install(self, words: Any) -> None:
        """All that a machine needs on which nothing runs."""
        words[BASE_SHIFT] = self.page_shift


def judged(
    va: int, frame: int, page: int, rights: Rights, user: bool, access: Access | None, path: Any, **noted: Any
) -> Walk:
    """The end of a walk that found a page of 2**page bytes: granted, or refused for want of a right."""
    read, write, execute = rights
    asked = (
        True if access is None else {Access.FETCH: execute, Access.LOAD: read, Access.STORE: write}[access]
    )
    low = (1 << page) - 1
    return Walk(
        va=va,
        pa=frame & ~low | va & low if asked else None,
        fault=WalkFault.NONE if asked else WalkFault.NO_PERMISSION,
        page_size=1 << page,
        path=tuple(path),
        readable=read,
        writable=write,
        executable=execute,
        user=user,
        **noted,
    )
