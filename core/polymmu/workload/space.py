"""One address space of a running workload: recorded mm calls made on the machine, moved where they do not
fit.

The rules, which ``docs/workloads.md`` tells users:

- a recorded address is kept if it fits: inside user addresses, aligned to the machine's page, in nobody's
  way;
- a mapping that does not fit moves as a whole; what the program later does inside it moves along; - where to
  is the machine's own choice (its get_unmapped_area), except that a stack goes where the machine has stacks
  and a heap to the lowest room for all it will ever hold, so that both can grow;
- a mapping that cannot be placed at all makes the trace unusable on this machine: ``UserMistake``.

Order in every method: forget what the call replaces, call the machine, remember what it did.
"""

from __future__ import annotations

import errno
from typing import Any

import attrs

from polymmu.errors import SyscallError, UserMistake
from polymmu.workload.handles import MachineHandle, MmHandle
from polymmu.workload.model import InitialMapping
from polymmu.workload.placement import PlaceMap, Segment, joined

__all__ = ["RECORDED_PAGE", "STACK_ROOM", "Outcome", "Relocation", "Space"]

RECORDED_PAGE = 4096
"""Pages of the machine that recorded: x86-64."""

STACK_ROOM = 8 << 20
"""Linux's default RLIMIT_STACK: how far below its start a stack may grow."""


@attrs.frozen
class Relocation:
    """A recorded mapping [start, end) that lies at ``target`` instead of ``start``."""

    start: int
    end: int
    target: int
    why: str


@attrs.define
class Outcome:
    """What placing and calling did, over all address spaces of a run."""

    relocations: list[Relocation] = attrs.field(factory=list[Relocation])
    self_mapped_pages: int = 0


def page_up(value: int, page: int = RECORDED_PAGE) -> int:
    """``value`` rounded up to whole pages."""
    return -(-value // page) * page


class Space:
    """One mm, the places of its segments, and its heap. ``users`` counts the processes that share it."""

    def __init__(
        self, machine: MachineHandle, place: str, outcome: Outcome, mm: MmHandle | None = None
    ) -> None:
        self.machine = machine
        self.place = place
        self.outcome = outcome
        self.mm: MmHandle = machine.new_mm() if mm is None else mm
        self.map = PlaceMap()
        self.users = 1
        self._brk: int | None = None  # the recorded current break; None before it is known
        self._heap_delta = 0

    def fork(self) -> Space:
        """The child's copy."""
        child = Space(self.machine, self.place, self.outcome, self.mm.fork())
        child.map = self.map.copy()
        child._brk, child._heap_delta = self._brk, self._heap_delta
        return child

    # --- placing

    def _misfit(self, start: int, end: int, delta: int) -> str:
        """Why recorded [start, end) cannot lie ``delta`` away; empty if it can."""
        low, high = start + delta, page_up(end + delta, self.machine.page_size)
        if low % self.machine.page_size:
            return f"not aligned to {self.machine.page_size}-byte pages"
        if low < self.machine.first_user_address or high > self.machine.task_size:
            return (
                f"outside user addresses [{self.machine.first_user_address:#x}, {self.machine.task_size:#x})"
            )
        if not self.map.is_free(low, high, delta):
            return "in the way of another mapping"
        return ""

    def _moved(self, start: int, end: int, target: int, why: str) -> None:
        if target != start:
            self.outcome.relocations.append(Relocation(start, end, target, why))

    def _map(self, start: int, end: int, delta: int, hull: tuple[int, int], **how: Any) -> None:
        """Map recorded [start, end), at ``delta`` if it fits there, else wherever the machine likes."""
        length = end - start
        misfit = self._misfit(start, end, delta)
        if not misfit:
            try:
                self.mm.mmap(length=length, at=start + delta, fixed=True, **how)
            except SyscallError as refusal:
                misfit = refusal.reason
            else:
                self.map.add(Segment(start, end, delta, hull))
                return
        try:
            target = self._choose(length, how)
        except SyscallError as refusal:
            raise self._unplaceable(start, end, f"{misfit}, and elsewhere {refusal.reason}") from None
        self._moved(start, end, target, misfit)
        self.map.add(Segment(start, end, target - start, (start, end)))

    def _choose(self, length: int, how: dict[str, Any]) -> int:
        if how.get("grows_down"):
            # Where exec puts a stack, with room below.
            end = self.machine.stack_top
            top = end - page_up(length, self.machine.page_size)
            if self.map.is_free(top - STACK_ROOM, end, top):
                try:
                    return self.mm.mmap(length=length, at=top, fixed=True, **how)
                except SyscallError as refusal:
                    if refusal.errno == errno.ENOMEM:
                        raise
        return self.mm.mmap(length=length, **how)

    def _unplaceable(self, start: int, end: int, why: str) -> UserMistake:
        return UserMistake(
            f"the mapping [{start:#x}, {end:#x}) of {end - start} bytes has no place on this machine: {why}; "
            "take a machine with larger user addresses or more memory",
            place=self.place,
        )

    def _unmap(self, pieces: list[Segment]) -> None:
        """Unmap what was cut out. A page larger than the recorded one stays while a neighbour uses it."""
        page = self.machine.page_size
        for piece in pieces:
            low, high = piece.start + piece.delta, piece.end + piece.delta
            down, up = low // page * page, page_up(high, page)
            low = down if self.map.is_free(down, low, piece.delta) else page_up(low, page)
            high = up if self.map.is_free(high, up, piece.delta) else high // page * page
            if low < high:
                self.mm.munmap(low, high - low)

    # --- what existed before the first instruction

    def map_initial(self, mappings: tuple[InitialMapping, ...], brk_start: int | None, brk_top: int) -> None:
        """Make the initial mappings. Those that touch each other are one mapping: a program's parts keep
        their distances. The highest writable anonymous one is the stack; one that begins where the heap does
        is it.
        """
        anonymous = [m for m in mappings if not m.is_file and "w" in m.prot and m.start != brk_start]
        stack = anonymous[-1] if anonymous else None
        group: list[InitialMapping] = []
        for mapping in mappings:
            if mapping.start == brk_start or mapping is stack:
                continue
            if group and group[-1].end != mapping.start:
                self._map_group(group)
                group = []
            group.append(mapping)
        if group:
            self._map_group(group)
        if stack is not None:
            self._map(stack.start, stack.end, 0, (stack.start, stack.end), prot=stack.prot, grows_down=True)
            delta = self.map.overlapping(stack.start, stack.end)[0].delta
            low = max(stack.start - STACK_ROOM, 0)
            self.map.stack_room = low, stack.start, delta
            self.map.reserved.append((low + delta, stack.start + delta, delta))
        heap = next((m for m in mappings if m.start == brk_start), None)
        if heap is not None:
            self.start_heap(heap.start, max(brk_top, heap.end))
            self.brk(heap.end)

    def _map_group(self, group: list[InitialMapping]) -> None:
        start, end = group[0].start, group[-1].end
        file_size = max((m.end - start for m in group if m.is_file), default=0)
        file = self.machine.new_file(file_size, name="program") if file_size else None
        delta, misfit = 0, self._misfit(start, end, 0)
        if misfit:
            # Find the room for all parts at once, then put the parts into it.
            try:
                target = self.mm.mmap(length=end - start, prot="")
            except SyscallError as refusal:
                raise self._unplaceable(start, end, f"{misfit}, and elsewhere {refusal.reason}") from None
            self.mm.munmap(target, end - start)
            delta = target - start
            self._moved(start, end, target, misfit)
        for part in group:
            how: dict[str, Any] = {"prot": part.prot}
            if part.is_file:
                offset = (part.start - start) // self.machine.page_size * self.machine.page_size
                how |= {"file": file, "offset": offset}
            self._map(part.start, part.end, delta, (start, end), **how)

    # --- recorded calls; addresses and lengths as recorded

    def mmap(self, start: int, length: int, *, fixed: bool, **how: Any) -> None:
        """The recorded mmap returned ``start``."""
        end = page_up(start + length)
        old = self.map.overlapping(start, end)
        delta, hull = 0, (start, end)
        if fixed and old and old[0].hull[0] <= start and end <= old[0].hull[1]:
            delta, hull = old[0].delta, old[0].hull
        replaced = self.map.cut(start, end)
        inside = all(piece.delta == delta for piece in replaced) and not self._misfit(start, end, delta)
        if not inside:
            # What is replaced lies elsewhere than the replacement will: the machine's mmap cannot do it.
            self._unmap(replaced)
        self._map(start, end, delta, hull, **how)

    def munmap(self, start: int, length: int) -> bool:
        """False if nothing of the range was ever mapped."""
        pieces = self.map.cut(start, page_up(start + length))
        self._unmap(pieces)
        return bool(pieces)

    def _pieces(self, start: int, end: int) -> list[Segment]:
        """Recorded [start, end) as it lies. What the trace never mapped is mapped now: the call found it
        there.
        """
        for low, high in self.map.gaps(start, end):
            self._map(low, high, 0, (low, high), prot="rwx")
            self.outcome.self_mapped_pages += (
                page_up(high - low, self.machine.page_size) // self.machine.page_size
            )
        pieces = [
            attrs.evolve(piece, start=max(piece.start, start), end=min(piece.end, end))
            for piece in self.map.overlapping(start, end)
        ]
        return joined(pieces)

    def mprotect(self, start: int, length: int, prot: str) -> None:
        """Pages that a larger page size makes two mappings share get every right either asks for: all."""
        page = self.machine.page_size
        for piece in self._pieces(start, page_up(start + length)):
            low, high = piece.start + piece.delta, piece.end + piece.delta
            inner, outer = page_up(low, page), high // page * page
            if inner < outer:
                self.mm.mprotect(inner, outer - inner, prot)
            for shared in dict.fromkeys((low // page * page, outer)) if low % page or high % page else ():
                if shared < low or shared + page > high:
                    self.mm.mprotect(shared, page, "rwx")

    def madvise_dontneed(self, start: int, length: int) -> None:
        """Only whole pages of this machine lose their contents."""
        page = self.machine.page_size
        for piece in self._pieces(start, page_up(start + length)):
            low, high = page_up(piece.start + piece.delta, page), (piece.end + piece.delta) // page * page
            if low < high:
                self.mm.madvise(low, high - low, "dontneed")

    def mremap(self, start: int, old_length: int, new_length: int, result: int) -> None:
        """The recorded mremap returned ``result``."""
        old_length, new_length = page_up(old_length), page_up(new_length)
        source = self._pieces(start, start + max(old_length, RECORDED_PAGE))[0]
        at, end = start + source.delta, result + new_length
        if result == start and new_length <= old_length:
            self._unmap(self.map.cut(end, start + old_length))
            return
        if result == start and not self._misfit(start + old_length, end, source.delta):
            try:
                self.mm.mremap(at, old_length, new_length, may_move=False)
            except SyscallError:
                pass  # this kernel sees another mapping there: it moves instead, below
            else:
                hull = min(source.hull[0], start), max(source.hull[1], end)
                self.map.cut(start, start + old_length)
                self.map.add(Segment(start, end, source.delta, hull))
                return
        self.map.cut(start, start + old_length)
        self._unmap(self.map.cut(result, end))  # MREMAP_FIXED replaces what was there
        misfit = self._misfit(result, end, 0) if result != start else "not free where it would grow"
        target = None
        if not misfit:
            try:
                target = self.mm.mremap(at, old_length, new_length, may_move=True, to=result)
            except SyscallError as refusal:
                misfit = refusal.reason
        if target is None:
            try:
                target = self.mm.mremap(at, old_length, new_length, may_move=True)
            except SyscallError as refusal:
                raise self._unplaceable(result, end, f"{misfit}, and elsewhere {refusal.reason}") from None
        self._moved(result, end, target, misfit)
        self.map.add(Segment(result, end, target - result, (result, end)))

    # --- the heap

    def start_heap(self, start: int, top: int) -> None:
        """The break begins at recorded ``start``; the trace never takes it beyond ``top``."""
        page, machine = self.machine.page_size, self.machine
        top = page_up(max(top, start) + 1, page)
        misfit = self._misfit(start, top, 0)
        target: int | None = start
        if misfit:
            target = self.map.lowest_gap(
                max(machine.first_user_address, page), machine.task_size, top - start, page
            )
            if target is None:
                raise self._unplaceable(start, top, f"{misfit}, and no room for the heap elsewhere")
            self._moved(start, top, target, misfit)
        self._brk, self._heap_delta = start, target - start if target is not None else 0
        self.map.reserved.append((start + self._heap_delta, top + self._heap_delta, self._heap_delta))
        self.mm.set_brk_start(start + self._heap_delta)

    def brk(self, new: int) -> bool:
        """Move the break to recorded ``new``; False if that changes nothing."""
        if self._brk is None or new == self._brk:
            return False
        delta, old = self._heap_delta, self._brk
        if self.mm.brk(new + delta) != new + delta:
            raise SyscallError(errno.ENOMEM, f"the heap cannot end at {new + delta:#x}")
        self._brk = new
        old_end, new_end = page_up(old), page_up(new)
        if new_end > old_end:
            self.map.cut(old_end, new_end)
            self.map.add(Segment(old_end, new_end, delta, (old_end, new_end)))
        else:
            self.map.cut(new_end, old_end)
        return True

    @property
    def has_heap(self) -> bool:
        """Whether the start of the break is known."""
        return self._brk is not None

    # --- memory that the trace touches and never mapped

    def map_itself(self, recorded: int, delta: int) -> bool:
        """Map the page of recorded address ``recorded``; False if it could not be ``delta`` away."""
        page = self.machine.page_size
        start = (recorded + delta) // page * page - delta
        self.map.cut(start, start + page)
        self._map(start, start + page, delta, (start, start + page), prot="rwx", populate=True)
        self.outcome.self_mapped_pages += 1
        return self.map.overlapping(start, start + page)[0].delta == delta

    def map_area(self, runs: list[tuple[int, int]]) -> None:
        """Map recorded ``runs`` of touched pages, ascending; if one does not fit all move together."""
        start, end = runs[0][0], runs[-1][1]
        delta = 0
        misfits = [why for low, high in runs if (why := self._misfit(low, high, 0))]
        if misfits:
            try:
                target = self.mm.mmap(length=end - start, prot="")
            except SyscallError as refusal:
                raise self._unplaceable(start, end, f"{misfits[0]}, and elsewhere {refusal.reason}") from None
            self.mm.munmap(target, end - start)
            delta = target - start
            self._moved(start, end, target, misfits[0])
        for low, high in runs:
            self._map(low, high, delta, (start, end), prot="rwx", populate=True)
            self.outcome.self_mapped_pages += (high - low) // self.machine.page_size
