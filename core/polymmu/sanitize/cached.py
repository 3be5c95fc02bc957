"""INV-TLB, INV-WALK, INV-PERM, INV-COW: what CPUs have cached, against what the kernel has freed or taken back.

First reading: ``FreedFrames.to_user``, ``LostRights.to_user``.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from polymmu.hardware.cpu import Cpu
from polymmu.hardware.state import D_HOLDS
from polymmu.sanitize.cached_kernels import COLUMNS_OUT, entries_to_free_frames, what_became_of
from polymmu.sanitize.judge import Bench, Judge
from polymmu.sanitize.violation import Happened
from polymmu.structs import mm_struct

__all__ = ["FreedFrames", "LocklessWalks", "LostRights"]

SUSPECTS = 64
"""Entries looked for at one free; more of them are the same mistake."""
WORD = (1 << 64) - 1


@attrs.define
class Suspect:
    """A cached entry that leads to a freed frame, as the kernel found it."""

    entry: NDArray[np.int64]
    freed: Happened

    def in_tlb(self, cpu: Cpu) -> bool:
        """Whether it is in one of the TLBs of ``cpu``, else in a walk cache."""
        return bool(cpu.words[int(self.entry[1]) + D_HOLDS])

    @property
    def translation(self) -> tuple[int, int]:
        """What it says: the address, and where that leads."""
        return int(self.entry[5]), int(self.entry[3])


class FreedFrames(Judge):
    """INV-TLB and INV-WALK: nothing that a CPU may use leads to a frame that was given back.

    When frames are freed, every cached entry that leads to one becomes a suspect, no more, for fast mode frees first
    and flushes later. It is guilty if it is still there, and usable, when its CPU next runs user code. A root that a
    CPU has loaded must never be freed: the hardware may walk from it at any time. For the same reason a walk cache of
    another CPU is guilty at once where that CPU could use it now: in the kernel too, when it keeps an mm lazily or is
    about to load another.
    """

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.suspects: list[dict[int, Suspect]] = [{} for _ in self.kernel.cpus]
        """Per CPU, by the entry's place."""
        self._out = np.empty(SUSPECTS * COLUMNS_OUT, dtype=np.int64)
        self._frames = self.kernel.frames.table.reshape(-1)

    def pages_freed(self, n: int) -> None:
        frames = self.kernel.frames
        self._suspect(0, 0)
        for cpu in self.kernel.cpus:
            root = cpu.root >> frames.page_shift
            if 0 <= root < frames.count and not frames.refcount[root]:
                self.bench.tell(
                    "INV-WALK",
                    self.bench.now(f"root table {cpu.root:#x} freed"),
                    f"CPU {cpu.index} has it loaded",
                )

    def table_returned(self, mm: mm_struct, table: int, size: int) -> None:
        self._suspect(table, table + size)

    def _suspect(self, low: int, high: int) -> None:
        """Suspect what leads to a free frame, and what the walk caches have that leads into [low, high)."""
        shift, count = self.kernel.frames.page_shift, self.kernel.frames.count
        freed: dict[int, Happened] = {}
        for cpu in self.kernel.cpus:
            found = entries_to_free_frames(cpu.words, self._frames, shift, count, low, high, self._out)
            if found:
                suspects = self.suspects[cpu.index]
                fresh = []
                for at, place in enumerate(self._out[: found * COLUMNS_OUT : COLUMNS_OUT].tolist()):
                    if place not in suspects:
                        row = self._out[at * COLUMNS_OUT : (at + 1) * COLUMNS_OUT].copy()
                        leads_to = row.item(3)
                        if leads_to not in freed:
                            freed[leads_to] = self._freed(leads_to, low, high)
                        suspects[place] = Suspect(row, freed[leads_to])
                        fresh.append(suspects[place])
                if cpu is not self.kernel.sched.cpu:
                    self._judge_walks(cpu, fresh)

    def _judge_walks(self, cpu: Cpu, fresh: list[Suspect]) -> None:
        """Whatever ``cpu`` does now, its hardware may walk from where its walk caches lead."""
        does = "keeps an mm lazily" if self.kernel.lazy >> cpu.index & 1 else "has the mm loaded"
        for suspect in fresh:
            if not suspect.in_tlb(cpu) and what_became_of(cpu.words, suspect.entry) == 2:
                self._accuse(cpu, suspect, does)

    def _freed(self, leads_to: int, low: int, high: int) -> Happened:
        what = (
            f"table {low:#x}"
            if low <= leads_to < high
            else f"frame {leads_to >> self.kernel.frames.page_shift}"
        )
        return self.bench.now(f"{what} freed")

    def suspects_on(self, cpu: Cpu) -> bool:
        return bool(self.suspects[cpu.index])

    def after_invalidate(self, cpu: Cpu) -> None:
        suspects = self.suspects[cpu.index]
        if suspects:
            self.suspects[cpu.index] = {
                place: each for place, each in suspects.items() if what_became_of(cpu.words, each.entry)
            }

    def to_user(self, cpu: Cpu) -> None:
        if not self.suspects[cpu.index]:
            return
        left = {}
        accused = set()  # once, though it may be in TLBs of several levels
        for place, suspect in self.suspects[cpu.index].items():
            fate = what_became_of(cpu.words, suspect.entry)
            if fate == 1:
                left[place] = suspect
            elif fate and suspect.translation not in accused:
                accused.add(suspect.translation)
                self._accuse(cpu, suspect)
        self.suspects[cpu.index] = left

    def _accuse(self, cpu: Cpu, suspect: Suspect, does: str = "runs on") -> None:
        va = int(suspect.entry[5]) & WORD
        name, holder = ("INV-TLB", "TLB") if suspect.in_tlb(cpu) else ("INV-WALK", "walk cache")
        self.bench.tell(name, suspect.freed, f"CPU {cpu.index} {does}, its {holder} leads there for {va:#x}")

    def finish(self) -> None:
        for cpu in self.kernel.cpus:
            self.to_user(cpu)


@attrs.define
class Hull:
    """Addresses [start, last] in which entries of one mm lost something, and the last time that happened."""

    start: int
    last: int
    happened: Happened


class LostRights(Judge):
    """INV-PERM, INV-COW and INV-WALK: what a change took from an mm, no CPU has any more once nobody is changing it.

    A right or a page taken back must be gone from every TLB (INV-PERM); where a page was replaced by a private copy, or
    fork took the write right of both sides, readers would see the wrong page or writers a shared one (INV-COW); a table
    cut off must be gone from walk caches (INV-WALK). Each CPU is judged when it next runs user code of that mm.
    """

    ORDER = ("INV-COW", "INV-PERM", "INV-WALK")

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.hulls: list[dict[int, dict[str, Hull]]] = [{} for _ in self.kernel.cpus]
        """Per CPU: mm serial -> invariant -> what it has not been judged for yet."""
        self._forking: set[object] = set()
        """Contexts in the middle of a fork."""

    def mm_call_begin(self, mm: mm_struct, name: str) -> None:
        if name == "fork":
            self._forking.add(self.kernel.sched.context)

    def mm_call_end(self, mm: mm_struct, name: str) -> None:
        if name == "fork":
            self._forking.discard(self.kernel.sched.context)
        if name == "exit":
            for hulls in self.hulls:
                hulls.pop(mm.serial, None)

    def entries_changed(self, mm: mm_struct, start: int, end: int, n: int, what: str) -> None:
        copied = what == "replace" or (what == "wrprotect" and self.kernel.sched.context in self._forking)
        self._widen(mm, "INV-COW" if copied else "INV-PERM", start, end, f"{n} entries changed ({what})")

    def table_unhooked(self, mm: mm_struct, start: int, end: int) -> None:
        self._widen(mm, "INV-WALK", start, end, "table cut off")

    def _widen(self, mm: mm_struct, name: str, start: int, end: int, what: str) -> None:
        if mm.serial not in self.bench.mms:
            return
        last = (end - 1) & WORD
        happened = self.bench.now(f"{what} in [{start:#x}, {last:#x}]")
        for hulls in self.hulls:
            known = hulls.setdefault(mm.serial, {}).get(name)
            if known is None:
                hulls[mm.serial][name] = Hull(start, last, happened)
            else:
                known.start, known.last = min(start, known.start), max(last, known.last)
                known.happened = happened

    def to_user(self, cpu: Cpu) -> None:
        mm = self.kernel.active_mm[cpu.index]
        if mm is None or mm.serial not in self.hulls[cpu.index]:
            return
        if mm.serial != cpu.space or not self.bench.is_settled(mm):
            return
        hulls = self.hulls[cpu.index].pop(mm.serial)
        for name in self.ORDER:
            hull = hulls.get(name)
            if hull is not None and self._stale(cpu, hull.start, hull.last, name):
                at = self._narrow(cpu, hull.start, hull.last, name)
                self.bench.tell(
                    name, hull.happened, f"CPU {cpu.index} runs on with the old entry for {at:#x}"
                )
                return

    def _stale(self, cpu: Cpu, start: int, last: int, name: str) -> bool:
        return cpu.count_stale(None, cpu.root, start, (last + 1) & WORD, name == "INV-WALK") > 0

    def _narrow(self, cpu: Cpu, start: int, last: int, name: str) -> int:
        """The lowest page in [start, last] with a stale entry."""
        page = self.kernel.shape.layout.page_size
        while last - start >= page:
            middle = (start + (last - start) // 2) & -page
            if middle <= start:
                middle = start + page
            if self._stale(cpu, start, middle - 1, name):
                last = middle - 1
            else:
                start = middle
        return start

    def finish(self) -> None:
        for cpu in self.kernel.cpus:
            self.to_user(cpu)


class LocklessWalks(Judge):
    """INV-WALK: a walker without locks reads no table that was freed since it found it.

    Freed is what is told to have gone back (``table_returned``), and whatever lies in a frame that was freed.
    """

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._found: dict[int, tuple[int, int, Happened]] = {}
        """Per CPU: the table its walker goes on to, its frame's generation then (-1: the table went), and when."""

    def table_returned(self, mm: mm_struct, table: int, size: int) -> None:
        for cpu, (found, _, when) in self._found.items():
            if table <= found < table + size:
                self._found[cpu] = found, -1, when

    def lockless_read(self, mm: mm_struct, cpu: int, rank: int, entry: int, table: int) -> None:
        generation, shift = self.kernel.frames.generation, self.kernel.frames.page_shift
        found = self._found.pop(cpu, None)
        if found is not None and rank > -mm.layout.levels and found[1] != generation[found[0] >> shift]:
            self.bench.tell("INV-WALK", found[2], f"lockless walker reads table {found[0]:#x}, freed since")
        if 0 <= table >> shift < self.kernel.frames.count:
            found_now = self.bench.now(f"lockless walker found table {table:#x}")
            self._found[cpu] = table, generation[table >> shift], found_now
