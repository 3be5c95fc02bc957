"""A CPU's way through a workload's accesses: which columns it replays, and what happens where one has no mapping.

Accesses are replayed where they lie on this machine (``placement``). An access outside every mapping gets its page
mapped, as the recording had one there; an access that its mapping forbids ends the program.

First reading: ``Replayer.some``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polymmu.errors import PolymmuError, SegmentationFault
from polymmu.workload.handles import CpuHandle, MachineHandle
from polymmu.workload.model import AccessColumns, PageRuns
from polymmu.workload.space import Space

__all__ = ["AREA_GAP", "Columns", "Replayer"]

AREA_GAP = 2 << 20
"""Touched pages closer than this move together where no recorded mapping says what belongs together."""


class Columns:
    """The accesses of a workload as this machine's CPUs take them. ``oversize``: some lie outside user addresses."""

    def __init__(self, machine: MachineHandle, accesses: AccessColumns | PageRuns) -> None:
        self.accesses = accesses
        self.page_shift = machine.page_size.bit_length() - 1
        self.oversize = self._exceeds(machine.first_user_address, machine.task_size)
        self._as_recorded: tuple[NDArray[Any], ...] | None = None

    def _exceeds(self, low: int, high: int) -> bool:
        accesses = self.accesses
        if not len(accesses):
            return False
        if isinstance(accesses, PageRuns):
            first, last = int(accesses.vpn.min()), int(accesses.vpn.max()) + 1
            first, last = first << accesses.page_shift, last << accesses.page_shift
        else:
            first, last = int(accesses.vaddr.min()), int(accesses.vaddr.max()) + 1
        return first < low or last > high

    def addresses(self, start: int, stop: int) -> NDArray[np.uint64]:
        """Recorded addresses of rows [start, stop)."""
        if isinstance(self.accesses, AccessColumns):
            return self.accesses.vaddr[start:stop]
        return self.accesses.vpn[start:stop] << np.uint64(self.accesses.page_shift)

    def moved(self, start: int, stop: int, targets: NDArray[np.uint64]) -> tuple[NDArray[Any], ...]:
        """The columns of rows [start, stop) as the CPU takes them, at ``targets``, which may hold more."""
        rows, targets, accesses = slice(start, stop), targets[: stop - start], self.accesses
        if isinstance(accesses, AccessColumns):
            return accesses.op[rows], targets, accesses.size[rows]
        vpn = targets >> np.uint64(self.page_shift)
        return vpn, accesses.data[rows], accesses.write[rows], accesses.count[rows]

    def as_recorded(self) -> tuple[NDArray[Any], ...]:
        """All columns where nothing moved; page numbers of this machine, whose pages may be larger."""
        if self._as_recorded is None:
            accesses = self.accesses
            if isinstance(accesses, AccessColumns):
                self._as_recorded = accesses.op, accesses.vaddr, accesses.size
            else:
                shift = self.page_shift - accesses.page_shift
                vpn = accesses.vpn >> np.uint64(shift) if shift else accesses.vpn
                self._as_recorded = vpn, accesses.data, accesses.write, accesses.count
        return self._as_recorded

    def replay_of(self, cpu: CpuHandle) -> Callable[..., int]:
        """The call of ``cpu`` that takes these columns."""
        return cpu.replay if isinstance(self.accesses, AccessColumns) else cpu.replay_runs


class Replayer:
    """One CPU's position in the accesses: row ``done`` comes next. ``segfault`` is what ended it early.

    ``alone``: where threads run at once, what keeps the others from changing the map of the space meanwhile.
    """

    def __init__(
        self,
        machine: MachineHandle,
        columns: Columns,
        cpu: CpuHandle,
        alone: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.machine = machine
        self.columns = columns
        self.cpu = cpu
        self.done = 0
        self.segfault: SegmentationFault | None = None
        self._is_concurrent = alone is not None
        self._alone = alone or nullcontext
        self._last_fault: tuple[int, int] = (-1, 0)

    def some(self, space: Space, stop: int) -> bool:
        """Execute rows from ``done`` up to ``stop`` or the first one that has no mapping, and give it one.

        False where the program is killed.
        """
        start, columns, machine = self.done, self.columns, self.machine
        recorded = targets = None
        # Addresses are looked up one by one only where something moved, or has to.
        if space.map.is_moved or columns.oversize:
            recorded = columns.addresses(start, stop)
            targets, known = space.map.translation().apply(recorded)
            outside = ~known & (
                (targets >= np.uint64(machine.task_size)) | (targets < np.uint64(machine.first_user_address))
            )
            if outside.any():
                stop = start + int(np.argmax(outside))
                if stop == start:
                    self._map_outside(space, int(recorded[0]))
                    return True
            base, arrays = start, columns.moved(start, stop, targets)
        else:
            base, arrays = 0, columns.as_recorded()
        replay = columns.replay_of(self.cpu)
        # The same arrays again after a fault: the CPU knows which half of a page-crossing access is done.
        while self.done < stop:
            try:
                self.done = base + int(replay(*arrays, self.done - base, stop - base))
            except SegmentationFault as fault:
                if fault.index is None:
                    raise PolymmuError(f"the machine did not say which access failed: {fault}") from fault
                row = self.done = base + fault.index
                delta = 0
                if targets is not None and recorded is not None:
                    delta = int(targets[row - base]) - int(recorded[row - base])
                with self._alone():
                    goes_on = self._refused(space, row, fault, delta)
                if goes_on is None:
                    return False
                if not goes_on:
                    break
        return True

    def _map_outside(self, space: Space, address: int) -> None:
        """Give an address that this machine's users cannot have a page elsewhere."""
        with self._alone():
            if not space.map.overlapping(address, address + 1):
                space.map_itself(address, space.map.delta_near(address, AREA_GAP))

    def _refused(self, space: Space, row: int, fault: SegmentationFault, delta: int) -> bool | None:
        """Map the page of an access that had none. False: it lies elsewhere now; None: the program is killed."""
        page = fault.va // self.machine.page_size * self.machine.page_size
        again = self._last_fault == (row, page)
        self._last_fault = row, page
        if space.mm.is_mapped(page):
            if self._is_concurrent and not again:
                return False  # by another thread, after this one was refused
            self.segfault = fault
            return None
        if again:
            raise PolymmuError(f"access {row} faults again after its page was mapped") from fault
        if self._is_concurrent and space.map.overlapping(fault.va - delta, fault.va - delta + 1):
            return False  # another thread mapped it elsewhere
        return space.map_itself(fault.va - delta, delta)
