"""``SoftEntries``: entries that map no page and say where one is (swap, file) are told from all others, by everybody.

An entry that the core takes for a page and the hardware does not, or the other way round, frees somebody else's frame.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from polymmu.conformance.bench import ACCESSES, Bench, NotApplicable, require
from polymmu.conformance.checks import Checks
from polymmu.conformance.hardware import verdict
from polymmu.hardware.entry import EntryFormat, SoftEntry

__all__ = ["SoftEntries"]


def kinds_of(pte: EntryFormat) -> list[tuple[str, SoftEntry]]:
    """The kinds that a format describes."""
    kinds = [(name, kind) for name, kind in (("swap", pte.swap), ("file", pte.file)) if kind is not None]
    if not kinds:
        raise NotApplicable("it describes neither swap entries nor file ptes")
    return kinds


def numbers_of(name: str, kind: SoftEntry) -> Iterator[tuple[int, ...]]:
    """Numbers that try every bit alone, none and all. A swap area's page 0 is never used (Linux: its header)."""
    lowest = (0,) * (len(kind.limits) - 1) + (int(name == "swap"),)
    yield lowest
    yield kind.limits
    for part, limit in enumerate(kind.limits):
        for bit in range(limit.bit_length()):
            numbers = list(lowest)
            numbers[part] = 1 << bit
            yield tuple(numbers)


class SoftEntries(Checks):
    """Entries without a page."""

    def test_numbers_come_out_of_an_entry_without_a_page_as_they_went_in(self, bench: Bench) -> None:
        for name, kind in kinds_of(bench.shape.pte):
            seen: dict[int, tuple[int, ...]] = {}
            for numbers in numbers_of(name, kind):
                entry = kind.make(*numbers)
                require(kind.split(entry) == numbers, f"{name} {numbers} comes out of {entry:#x} as another")
                require(
                    seen.setdefault(entry, numbers) == numbers,
                    f"{name} {numbers} and {seen[entry]} are both {entry:#x}",
                )
                width = 8 * bench.shape.layout.entry_bytes[-1]
                require(entry < 1 << width, f"{name} {numbers} is {entry:#x}, an entry has {width} bits")

    def test_an_entry_without_a_page_is_nothing_else(self, bench: Bench) -> None:
        pte = bench.shape.pte
        kinds = kinds_of(pte)
        for name, kind in kinds:
            for numbers in numbers_of(name, kind):
                entry = kind.make(*numbers)
                require(kind.test(entry), f"{name} {numbers} is not found in {entry:#x}")
                require(not pte.is_none(entry), f"{name} {numbers} looks empty: {entry:#x}")
                require(not pte.is_mapped(entry), f"{name} {numbers} looks like a page: {entry:#x}")
                for other_name, other in kinds:
                    require(
                        other is kind or not other.test(entry),
                        f"{name} {numbers} looks like {other_name}: {entry:#x}",
                    )
            for value in (
                pte.empty,
                *(prot | 3 << bench.shape.pfn_shift for prot in bench.shape.protections),
            ):
                require(not kind.test(value), f"the pte {value:#x} looks like {name}")

    def test_hardware_refuses_an_entry_without_a_page_as_not_present(self, bench: Bench) -> None:
        for name, kind in kinds_of(bench.shape.pte):
            world = bench.world()
            mm = world.program()
            va = mm.mmap(world.page, shared=True)
            world.cpus[0].store(va, b"x")
            vma, ptep = world.vma(mm, va), world.ptep(mm, va)
            for numbers in numbers_of(name, kind):
                world.kernel.ops.ptep_clear_flush(vma, va, ptep, 1)
                entry = np.array((kind.make(*numbers),), dtype=np.uint64)
                world.kernel.ops.set_pte(mm.struct, va, ptep, entry)
                require(int(entry[0]) == world.pte(mm, va), f"set_pte changes {int(entry[0]):#x}")
                for access in ACCESSES:
                    refused = verdict(world, 0, access, va)
                    require(
                        refused is not None, f"a {access} goes through {name} {numbers}: {int(entry[0]):#x}"
                    )
                    assert refused is not None
                    require(
                        refused.kind == "not_present",
                        f"a {access} of {name} {numbers} is refused as {refused.kind}",
                    )
