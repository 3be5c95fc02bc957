"""Run a workload on a machine: recorded calls at their recorded places between the accesses.

One driver, on CPU 0, in recorded order; threads of the recording take turns as they did there. ``Executor``
knows processes and their open files, ``space`` knows mappings, the machine does the rest. Only the public
handles are used (``handles``), so any machine can be driven.

First reading: ``execute``, then ``Executor._between``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from polymmu.errors import PolymmuError, SegmentationFault, SyscallError, UserMistake
from polymmu.workload import syscalls as sys
from polymmu.workload.handles import FileHandle, MachineHandle
from polymmu.workload.model import AccessColumns, MmCall, PageRuns, Workload
from polymmu.workload.pages import touched_pages
from polymmu.workload.result import ExecutionResult, RefusedCall
from polymmu.workload.space import Outcome, Space, page_up

__all__ = ["execute"]

SLICE = 1 << 20
"""Accesses between two looks at Ctrl-C and the progress bar: some milliseconds of replay."""

AREA_GAP = 2 << 20
"""Touched pages closer than this move together where no recorded mapping says what belongs together."""

Progress = Callable[[int, int], None]


def execute(
    machine: MachineHandle,
    workload: Workload,
    *,
    ignore_mm_calls: bool = False,
    progress: Progress | None = None,
) -> ExecutionResult:
    """Run ``workload`` on ``machine``, CPU 0.

    ``ignore_mm_calls`` replays accesses alone: no recorded call, no initial mapping; what they touch maps
    itself. ``progress(done, total)`` is called every few milliseconds with rows. Raises ``UserMistake`` if a
    mapping has no place on this machine; what the program itself did wrong is in the result.
    """
    if isinstance(workload.accesses, PageRuns) and 1 << workload.accesses.page_shift > machine.page_size:
        raise UserMistake(
            f"page runs of {1 << workload.accesses.page_shift} bytes cannot be replayed on pages of "
            f"{machine.page_size}; take a trace of single accesses",
            place=workload.name,
        )
    if ignore_mm_calls and workload.accesses is None:
        raise UserMistake(
            "holds system calls and no accesses: nothing is left to replay without its calls",
            place=workload.name,
        )
    executor = Executor(machine, workload, ignore_mm_calls, progress)
    try:
        executor.run()
    except KeyboardInterrupt:
        executor.result.partial = True
    executor.result.relocations = executor.outcome.relocations
    executor.result.self_mapped_pages = executor.outcome.self_mapped_pages
    return executor.result


@attrs.define(eq=False)
class _File:
    """An open file as far as mappings care: how large, and the machine's file once it is mapped."""

    name: str
    size: int = 0
    handle: FileHandle | None = None

    def truncate(self, size: int) -> None:
        self.size = size
        if self.handle is not None:
            self.handle.truncate(size)

    def mapped(self, machine: MachineHandle, size: int) -> FileHandle:
        """The machine's file, at least ``size`` bytes: writes are not recorded, but the mapping was used."""
        handle = self.handle
        if handle is None:
            self.size = max(self.size, size)
            self.handle = handle = machine.new_file(self.size, name=self.name)
        elif self.size < size:
            self.truncate(size)
        return handle


@attrs.define(eq=False)
class _Process:
    """A thread group: its address space, its descriptors, and how many of its threads run."""

    space: Space
    files: dict[int, _File] = attrs.field(factory=dict[int, _File])
    threads: int = 1
    parent: int = 0


class Executor:
    """One run."""

    def __init__(
        self, machine: MachineHandle, workload: Workload, ignore_mm_calls: bool, progress: Progress | None
    ) -> None:
        self.machine = machine
        self.workload = workload
        self.cpu = machine.cpus[0]
        self.progress = progress
        self.outcome = Outcome()
        self.calls = () if ignore_mm_calls else workload.calls
        self.initial = () if ignore_mm_calls else workload.initial
        accesses = workload.accesses
        self.result = ExecutionResult(total=0 if accesses is None else len(accesses))
        if ignore_mm_calls:
            self.result.calls_ignored = len(workload.calls)
        self.processes: dict[int, _Process] = {}
        self.by_path: dict[str, _File] = {}
        self.current: Space | None = None
        self.brk_tops: dict[int, int] = {}
        for call in self.calls:
            if call.name == "brk" and call.ret is not None and not call.failed:
                self.brk_tops[call.process] = max(self.brk_tops.get(call.process, 0), call.ret)
        self.traced = frozenset(call.process for call in self.calls)
        self.main = self.calls[0].process if self.calls else 1
        # Addresses are looked up one by one only where something moved, or has to.
        self.oversize = isinstance(accesses, (AccessColumns, PageRuns)) and self._exceeds(accesses)

    def _exceeds(self, accesses: AccessColumns | PageRuns) -> bool:
        if not len(accesses):
            return False
        if isinstance(accesses, PageRuns):
            low, high = int(accesses.vpn.min()), int(accesses.vpn.max()) + 1
            low, high = low << accesses.page_shift, high << accesses.page_shift
        else:
            low, high = int(accesses.vaddr.min()), int(accesses.vaddr.max()) + 1
        return low < self.machine.first_user_address or high > self.machine.task_size

    def run(self) -> None:
        """Initial mappings, then calls and accesses in turn."""
        main = self._process(self.main)
        main.space.map_initial(self.initial, self._brk_start(), self.brk_tops.get(self.main, 0))
        accesses = self.workload.accesses
        if accesses is not None:
            self._switch(main.space)
            if not self.calls:
                self._map_touched(main.space, accesses)
        for call, row in zip(self.calls, self._rows(), strict=True):
            if not self._replay(row):
                return
            self._call(call)
        self._replay(self.result.total)

    def _brk_start(self) -> int | None:
        first = next((c for c in self.calls if c.name == "brk" and c.process == self.main), None)
        return first.ret if first is not None and not first.failed else None

    def _rows(self) -> list[int]:
        """For each call the row of accesses or page runs before which it happened."""
        positions = np.array([call.pos for call in self.calls], dtype=np.uint64)
        if isinstance(self.workload.accesses, PageRuns):
            positions = np.searchsorted(self.workload.accesses.pos, positions, side="left").astype(np.uint64)
        return [min(int(row), self.result.total) for row in positions]

    def _process(self, number: int) -> _Process:
        process = self.processes.get(number)
        if process is None:  # the first one, or one whose creation was not recorded
            process = _Process(Space(self.machine, self.workload.name, self.outcome))
            self.processes[number] = process
            self.result.processes = max(self.result.processes, len(self.processes))
        return process

    def _switch(self, space: Space) -> None:
        if space is not self.current:
            self.cpu.switch_mm(space.mm)
            self.current = space

    # --- accesses

    def _map_touched(self, space: Space, accesses: AccessColumns | PageRuns) -> None:
        """A trace without calls: all it touches outside the initial mappings maps itself, beforehand."""
        page = self.machine.page_size
        pages = touched_pages(accesses, page.bit_length() - 1)
        if not len(pages):
            return
        breaks = np.flatnonzero(np.diff(pages) != 1) + 1
        starts = (pages[np.concatenate(([0], breaks))]).tolist()
        ends = (pages[np.concatenate((breaks - 1, [len(pages) - 1]))]).tolist()
        area: list[tuple[int, int]] = []
        room = space.map.stack_room
        for start, end in zip(starts, ends, strict=True):
            for low, high in space.map.gaps(start * page, (end + 1) * page):
                if room is not None and room[0] <= low and high <= room[1]:
                    continue  # the stack grows there by itself
                if area and low - area[-1][1] > AREA_GAP:
                    space.map_area(area)
                    area = []
                area.append((low, high))
        if area:
            space.map_area(area)

    def _replay(self, stop: int) -> bool:
        """Execute rows up to ``stop``; False if the program was killed."""
        process = self.processes.get(self.main)
        while self.result.done < stop:
            if process is None:
                return False  # the program has exited; accesses after that cannot be its own
            self._switch(process.space)
            high = min(self.result.done + SLICE, stop)
            while self.result.done < high:
                if not self._some(process.space, high):
                    return False
            if self.progress is not None:
                self.progress(self.result.done, self.result.total)
        return True

    def _some(self, space: Space, stop: int) -> bool:
        """Execute rows from ``done`` up to ``stop`` or the first one that has no mapping, and give it one."""
        start = self.result.done
        accesses = self.workload.accesses
        assert accesses is not None
        recorded = targets = None
        if space.map.is_moved or self.oversize:
            recorded = self._addresses(accesses, start, stop)
            targets, known = space.map.translation().apply(recorded)
            outside = ~known & (
                (targets >= np.uint64(self.machine.task_size))
                | (targets < np.uint64(self.machine.first_user_address))
            )
            if outside.any():
                stop = start + int(np.argmax(outside))
                if stop == start:
                    address = int(recorded[0])
                    space.map_itself(address, space.map.delta_near(address, AREA_GAP))
                    return True
            base, arrays = start, self._moved_columns(accesses, start, stop, targets)
        else:
            base, arrays = 0, self._recorded_columns(accesses)
        replay = self.cpu.replay if isinstance(accesses, AccessColumns) else self.cpu.replay_runs
        # The same arrays again after a fault: the CPU knows which half of a page-crossing access is done.
        while self.result.done < stop:
            try:
                self.result.done = base + int(replay(*arrays, self.result.done - base, stop - base))
            except SegmentationFault as fault:
                if fault.index is None:
                    raise PolymmuError(f"the machine did not say which access failed: {fault}") from fault
                row = self.result.done = base + fault.index
                page = fault.va // self.machine.page_size * self.machine.page_size
                if space.mm.is_mapped(page):
                    self.result.segfault = fault
                    return False
                if self._last_fault == (row, page):
                    raise PolymmuError(f"access {row} faults again after its page was mapped") from fault
                self._last_fault = row, page
                delta = 0
                if targets is not None and recorded is not None:
                    delta = int(targets[row - base]) - int(recorded[row - base])
                if not space.map_itself(fault.va - delta, delta):
                    break
        return True

    _last_fault: tuple[int, int] = (-1, 0)

    @staticmethod
    def _addresses(accesses: AccessColumns | PageRuns, start: int, stop: int) -> NDArray[np.uint64]:
        if isinstance(accesses, AccessColumns):
            return accesses.vaddr[start:stop]
        return accesses.vpn[start:stop] << np.uint64(accesses.page_shift)

    def _moved_columns(
        self, accesses: AccessColumns | PageRuns, start: int, stop: int, targets: NDArray[np.uint64]
    ) -> tuple[NDArray[Any], ...]:
        """The columns of rows [start, stop) as the CPU takes them, at ``targets``, which may hold more."""
        rows, targets = slice(start, stop), targets[: stop - start]
        if isinstance(accesses, AccessColumns):
            return accesses.op[rows], targets, accesses.size[rows]
        vpn = targets >> np.uint64(self.machine.page_size.bit_length() - 1)
        return vpn, accesses.data[rows], accesses.write[rows], accesses.count[rows]

    def _recorded_columns(self, accesses: AccessColumns | PageRuns) -> tuple[NDArray[Any], ...]:
        """All columns where nothing moved; page numbers of this machine, whose pages may be larger."""
        if isinstance(accesses, AccessColumns):
            return accesses.op, accesses.vaddr, accesses.size
        if self._vpn is None:
            shift = self.machine.page_size.bit_length() - 1 - accesses.page_shift
            self._vpn = accesses.vpn >> np.uint64(shift) if shift else accesses.vpn
        return self._vpn, accesses.data, accesses.write, accesses.count

    _vpn: NDArray[np.uint64] | None = None

    # --- calls

    def _call(self, call: MmCall) -> None:
        if call.failed:
            self.result.calls_failed += 1
            if call.name == "wait4" and call.ret == -errno.ECHILD and call.arg(0) == -1:
                self._end_children(call.process)
            return
        exiting = call.name in ("exit", "exit_group")
        if exiting and call.process not in self.processes:
            self.result.calls_ignored += 1
            return
        process = self._process(call.process)
        if self.workload.accesses is None:
            self._switch(process.space)
        try:
            counted = self._execute(process, call)
        except SyscallError as refusal:
            if refusal.errno == errno.ENOMEM and call.name in ("fork", "clone", "vfork"):
                raise UserMistake(
                    f"the machine's memory is too small for {call.name}: {refusal.reason}",
                    place=self.workload.name,
                ) from None
            self.result.refused.append(RefusedCall(call, refusal.reason))
            return
        if counted:
            self.result.calls_executed += 1
        else:
            self.result.calls_ignored += 1

    def _execute(self, process: _Process, call: MmCall) -> bool:
        """Make the call; False if it has nothing to do with mappings."""
        name, space, arg, ret = call.name, process.space, call.arg, call.ret or 0
        if name == "mmap":
            self._mmap(process, call)
        elif name == "munmap":
            return space.munmap(arg(0), arg(1))
        elif name == "mprotect":
            space.mprotect(arg(0), arg(1), sys.prot_letters(arg(2)))
        elif name == "mremap":
            space.mremap(arg(0), arg(1), arg(2), ret)
        elif name == "brk":
            return self._brk(process, call)
        elif name == "madvise":
            if arg(2) != sys.MADV_DONTNEED:
                return False
            space.madvise_dontneed(arg(0), arg(1))
        elif name in sys.FORKS:
            return self._fork(process, call)
        elif name in ("execve", "execveat"):
            self._exec(process)
        elif name in ("exit", "exit_group", "wait4"):
            return self._end(process, call)
        else:
            return self._descriptor(process, call)
        return True

    def _mmap(self, process: _Process, call: MmCall) -> None:
        _, length, prot, flags, fd, offset = (call.arg(index) for index in range(6))
        how: dict[str, Any] = {
            "prot": sys.prot_letters(prot),
            "shared": flags & sys.MAP_TYPE in (sys.MAP_SHARED, sys.MAP_SHARED_VALIDATE),
            "populate": bool(flags & sys.MAP_POPULATE),
        }
        if flags & sys.MAP_GROWSDOWN:
            how["grows_down"] = True
        if not flags & sys.MAP_ANONYMOUS:
            file = process.files.setdefault(fd, _File(f"fd {fd}"))
            how["file"] = file.mapped(self.machine, offset + page_up(length))
            how["offset"] = offset // self.machine.page_size * self.machine.page_size
        elif huge := sys.huge_size(flags):
            length = page_up(length, huge)  # as the recorded kernel did
            if huge in self.machine.huge_page_sizes:
                how["huge"] = huge
            else:
                self.result.small_for_huge += 1
        process.space.mmap(call.ret or 0, length, fixed=bool(flags & sys.MAP_FIXED), **how)

    def _brk(self, process: _Process, call: MmCall) -> bool:
        wanted, new = call.arg(0), call.ret or 0
        if not process.space.has_heap:
            process.space.start_heap(new, self.brk_tops.get(call.process, 0))
            return False
        if wanted not in (0, new):
            self.result.calls_failed += 1  # brk tells failure by answering another address
            return False
        return wanted != 0 and process.space.brk(new)

    def _fork(self, process: _Process, call: MmCall) -> bool:
        if call.ret is None or call.ret <= 0:
            return False
        flags = call.arg(0)
        shares = call.name == "vfork" or (call.name == "clone" and bool(flags & sys.CLONE_VM))
        # clone3's flags lie in memory that most recorders do not print: then it made a thread, its usual use.
        if call.name == "clone3" or (shares and flags & sys.CLONE_THREAD):
            process.threads += 1
            return False
        if shares:
            process.space.users += 1
        space = process.space if shares else process.space.fork()
        self.processes[call.ret] = _Process(space, dict(process.files), parent=call.process)
        self.result.processes = max(self.result.processes, len(self.processes))
        return True

    def _leave(self, space: Space) -> None:
        space.users -= 1
        if not space.users:
            space.mm.exit()
            if space is self.current:
                self.current = None

    def _exec(self, process: _Process) -> None:
        new = Space(self.machine, self.workload.name, self.outcome)
        old, process.space, process.threads = process.space, new, 1
        self._switch(new)
        self._leave(old)

    def _end(self, process: _Process, call: MmCall) -> bool:
        """exit, exit_group; wait4, which tells the end of a child that was not traced itself."""
        number = call.process
        if call.name == "wait4":
            number = call.ret or 0
            if number not in self.processes:
                return False
            process = self.processes[number]
        elif call.name == "exit":
            process.threads -= 1
            if process.threads:
                return False
        del self.processes[number]
        self._leave(process.space)
        self._end_children(number)
        return True

    def _end_children(self, parent: int) -> None:
        """End children that were not traced themselves: their parent exits, or was told that it has none left.

        A wait4 that a signal interrupts may have reaped a child and never show its result in a lackey log;
        the next one then fails with ECHILD.
        """
        for number, child in list(self.processes.items()):
            if child.parent == parent and number not in self.traced:
                del self.processes[number]
                self._leave(child.space)

    def _descriptor(self, process: _Process, call: MmCall) -> bool:
        """Calls on files. Only a change of a mapped file's size concerns mappings."""
        name, arg, ret = call.name, call.arg, call.ret or 0
        files = process.files
        if name in ("open", "openat", "openat2", "creat", "memfd_create"):
            flags = arg({"open": 1, "openat": 2}.get(name, 5))
            named = call.path and name != "memfd_create" and flags & sys.O_TMPFILE != sys.O_TMPFILE
            fresh = _File(call.path or f"fd {ret}")
            files[ret] = self.by_path.setdefault(call.path, fresh) if named else fresh
        elif name == "close":
            files.pop(arg(0), None)
        elif name in ("dup", "dup2", "dup3") or (
            name == "fcntl" and arg(1) in (sys.F_DUPFD, sys.F_DUPFD_CLOEXEC)
        ):
            files[ret] = files.setdefault(arg(0), _File(f"fd {arg(0)}"))
        elif name in ("ftruncate", "truncate"):
            file = files.setdefault(arg(0), _File(f"fd {arg(0)}")) if name == "ftruncate" else None
            if name == "truncate" and call.path:
                file = self.by_path.setdefault(call.path, _File(call.path))
            if file is not None:
                mapped = file.handle is not None
                file.truncate(arg(1))
                return mapped
        return False
