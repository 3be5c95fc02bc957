"""The rules between a description's fields: what no real hardware could have.

Each is an attrs validator (object, attribute, value); the loader tells its ``ValueError`` at the
place of the value. The objects are typed loosely because the classes of ``model`` lie above this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "ACCESSES",
    "check_anon_vma_lock",
    "check_cache_levels",
    "check_line",
    "check_once_each",
    "check_page_sizes",
    "check_tlb_levels",
    "check_ways",
    "check_whole_mib",
]

ACCESSES = ("fetch", "load", "store")


def check_ways(cache: Any, attribute: object, ways: int) -> None:
    """Whole sets, and for tree-PLRU a full binary tree. No entries at all: the cache does not exist."""
    if cache.entries == 0:
        return
    if ways > cache.entries or cache.entries % ways:
        raise ValueError(f"{ways} ways do not divide {cache.entries} entries into whole sets")
    if cache.replacement == "plru" and ways & (ways - 1):
        raise ValueError(f"{ways} ways are no full tree; plru needs a power of two")


def check_once_each(owner: Any, attribute: object, values: Sequence[object]) -> None:
    """At least one item, and none of them twice."""
    if not values:
        raise ValueError("an empty list; name at least one")
    if len(set(values)) != len(values):
        raise ValueError("something stands in this list twice")


def check_page_sizes(owner: Any, attribute: object, sizes: Sequence[int]) -> None:
    """Powers of two, from the VAX's 512 bytes up."""
    check_once_each(owner, attribute, sizes)
    for size in sizes:
        if size < 512 or size & (size - 1):
            raise ValueError(f"a page of {size} bytes; page sizes are powers of two from 512 bytes up")


def check_line(owner: Any, attribute: object, text: str) -> None:
    """What stands in one line of a list."""
    if not text.isprintable():
        raise ValueError("not one line of printable text")


def check_whole_mib(owner: Any, attribute: object, size: int) -> None:
    """No architecture's page, huge pages aside, is larger."""
    if size % (1 << 20):
        raise ValueError(f"{size} bytes are not a whole number of MiB")


def check_tlb_levels(machine: Any, attribute: object, tlbs: Mapping[str, Any]) -> None:
    """An access knows where to look first and where next, and never gets two answers."""
    holders: dict[tuple[int, str, int], str] = {}
    for name, tlb in tlbs.items():
        for access in tlb.holds:
            for size in tlb.page_sizes:
                other = holders.setdefault((tlb.level, access, size), name)
                if other != name:
                    raise ValueError(
                        f"{other} and {name} both hold {access} translations of {size}-byte pages "
                        f"at level {tlb.level}"
                    )
    for access in ACCESSES if tlbs else ():
        levels = {tlb.level for tlb in tlbs.values() if access in tlb.holds}
        for level in range(1, max(levels, default=1) + 1):
            if level not in levels:
                raise ValueError(f"no TLB of level {level} holds {access} translations")


def check_anon_vma_lock(kernel: Any, attribute: object, lock: str) -> None:
    """It is taken below i_mmap_lock."""
    if lock == "mutex" and kernel.i_mmap_lock == "spin":
        raise ValueError("a mutex cannot be waited for below i_mmap_lock, which is a spinlock; leave it out")


def check_cache_levels(machine: Any, attribute: object, caches: Mapping[str, Any]) -> None:
    """One paging-structure cache for each table level."""
    holders: dict[int, str] = {}
    for name, cache in caches.items():
        other = holders.setdefault(cache.level, name)
        if other != name:
            raise ValueError(f"{other} and {name} both hold entries of level {cache.level}")
