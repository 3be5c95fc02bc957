"""Recorded calls at their recorded places between the accesses, one after another on CPU 0.

Threads of the recording take turns as they did there. ``Executor`` knows processes and their open files, ``space``
knows mappings, ``replay`` accesses; the machine does the rest. Only the public handles are used (``handles``), so any
machine can be driven.

First reading: ``Executor.run``, then ``_call``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np

from polymmu.errors import SyscallError, UserMistake
from polymmu.workload import syscalls as sys
from polymmu.workload.handles import FileHandle, MachineHandle
from polymmu.workload.model import AccessColumns, MmCall, PageRuns, Workload
from polymmu.workload.pages import touched_pages
from polymmu.workload.replay import AREA_GAP, Columns, Replayer
from polymmu.workload.result import ExecutionResult, RefusedCall
from polymmu.workload.space import Outcome, Space, page_up

__all__ = ["SLICE", "Executor", "Progress"]

SLICE = 1 << 20
"""Accesses between two looks at Ctrl-C and the progress bar: some milliseconds of replay."""

Progress = Callable[[int, int], None]


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
        self.columns = None if accesses is None else Columns(machine, accesses)

    def run(self) -> None:
        """Initial mappings, then calls and accesses in turn."""
        self._begin()
        for call, row in zip(self.calls, self._rows(), strict=True):
            if not self._replay(row):
                return
            self._call(call)
        self._replay(self.result.total)

    def _begin(self) -> Space:
        """The program as it was before the first instruction."""
        main = self._process(self.main)
        main.space.map_initial(self.initial, self._brk_start(), self.brk_tops.get(self.main, 0))
        accesses = self.workload.accesses
        if accesses is not None:
            self._switch(main.space)
            if not self.calls:
                self._map_touched(main.space, accesses)
        return main.space

    def _brk_start(self) -> int | None:
        first = next((c for c in self.calls if c.name == "brk" and c.process == self.main), None)
        return first.ret if first is not None and not first.failed else None

    def _rows(self) -> list[int]:
        """For each call the row of accesses or page runs before which it happened."""
        return self._rows_at([call.pos for call in self.calls])

    def _rows_at(self, positions: Sequence[int]) -> list[int]:
        rows = np.array(positions, dtype=np.uint64)
        if isinstance(self.workload.accesses, PageRuns):
            rows = np.searchsorted(self.workload.accesses.pos, rows, side="left").astype(np.uint64)
        return [min(int(row), self.result.total) for row in rows]

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
        if self.result.done >= stop:
            return True
        assert self.columns is not None
        replayer = self._replayer
        if replayer is None:
            replayer = self._replayer = Replayer(self.machine, self.columns, self.cpu)
        process = self.processes.get(self.main)
        while replayer.done < stop:
            if process is None:
                return False  # the program has exited; accesses after that cannot be its own
            self._switch(process.space)
            high = min(replayer.done + SLICE, stop)
            goes_on = True
            while goes_on and replayer.done < high:
                goes_on = replayer.some(process.space, high)
            self.result.done, self.result.segfault = replayer.done, replayer.segfault
            if not goes_on:
                return False
            if self.progress is not None:
                self.progress(self.result.done, self.result.total)
        return True

    _replayer: Replayer | None = None

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
        if flags & sys.MAP_NORESERVE:
            how["noreserve"] = True
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
