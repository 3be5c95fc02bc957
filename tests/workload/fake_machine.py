"""A machine that only remembers which pages are mapped: enough to see what a workload asks for.

Independent of the emulator: a dictionary from page number to rights, a log of calls, a first-fit
``get_unmapped_area`` from the top. Addresses outside user space and misaligned ones are refused as Linux
does.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from polymmu.errors import SegmentationFault, syscall_error


@attrs.define(eq=False)
class FakeFile:
    name: str
    size: int

    def truncate(self, size: int, /) -> None:
        self.size = size


@attrs.define(eq=False)
class FakeMm:
    machine: FakeMachine
    pages: dict[int, str] = attrs.field(factory=dict[int, str])
    break_start: int = 0
    break_now: int = 0
    dead: bool = False

    def _log(self, *what: object) -> None:
        assert not self.dead, f"{what} on an mm that has exited"
        self.machine.log.append(what)

    def _range(self, addr: int, length: int) -> range:
        page = self.machine.page_size
        if addr % page or length <= 0:
            raise syscall_error(errno.EINVAL, f"{addr:#x} + {length}")
        high = addr + -(-length // page) * page
        if addr < self.machine.first_user_address or high > self.machine.task_size:
            raise syscall_error(errno.ENOMEM, "outside user addresses")
        return range(addr // page, high // page)

    def _choose(self, length: int) -> int:
        page = self.machine.page_size
        wanted = -(-length // page)
        top = self.machine.mmap_top // page
        for used in [*sorted((p for p in self.pages if p < top), reverse=True), -1]:
            if top - used - 1 >= wanted:
                break
            top = used
        if (top - wanted) * page < self.machine.first_user_address:
            raise syscall_error(errno.ENOMEM, "no free range")
        return (top - wanted) * page

    def mmap(
        self,
        *,
        length: int,
        prot: str = "rw",
        at: int | None = None,
        fixed: bool = False,
        shared: bool = False,
        file: Any = None,
        offset: int = 0,
        populate: bool = False,
        grows_down: bool = False,
        noreserve: bool = False,
        huge: int = 0,
    ) -> int:
        if at is None or not fixed:
            at = self._choose(length)
        if file is not None:
            assert offset % self.machine.page_size == 0
            assert file.size >= offset + length
        pages = self._range(at, length)
        self._log("mmap", at, length, prot)
        self.pages.update(dict.fromkeys(pages, prot))
        self.machine.huge += [(at, length, huge)] if huge else []
        if grows_down:
            self.machine.stacks.append(at)
        return at

    def munmap(self, addr: int, length: int, /) -> None:
        self._log("munmap", addr, length)
        for page in self._range(addr, length):
            self.pages.pop(page, None)

    def mprotect(self, addr: int, length: int, prot: str, /) -> None:
        self._log("mprotect", addr, length, prot)
        for page in self._range(addr, length):
            if page not in self.pages:
                raise syscall_error(errno.ENOMEM, "a hole")
            self.pages[page] = prot

    def mremap(
        self, addr: int, old_length: int, new_length: int, /, *, may_move: bool = True, to: int | None = None
    ) -> int:
        page = self.machine.page_size
        old = self._range(addr, old_length)
        if any(p not in self.pages for p in old):
            raise syscall_error(errno.EFAULT, "a hole")
        prot = self.pages[old[0]]
        if to is None:
            extra = self._range(addr, new_length)[len(old) :] if new_length > old_length else ()
            if not any(p in self.pages for p in extra):
                to = addr
            elif not may_move:
                raise syscall_error(errno.ENOMEM, "cannot grow")
            else:
                to = self._choose(new_length)
        new = self._range(to, new_length)
        self._log("mremap", addr, old_length, new_length, to)
        for p in old:
            del self.pages[p]
        self.pages.update(dict.fromkeys(new, prot))
        assert to % page == 0
        return to

    def set_brk_start(self, addr: int, /) -> None:
        self._log("set_brk_start", addr)
        self.break_start = self.break_now = addr

    def brk(self, addr: int, /) -> int:
        page = self.machine.page_size
        old, new = -(-self.break_now // page), -(-addr // page)
        if addr < self.break_start or any(p in self.pages for p in range(old, new)):
            return self.break_now
        self._log("brk", addr)
        self.pages.update(dict.fromkeys(range(old, new), "rw"))
        for p in range(new, old):
            self.pages.pop(p, None)
        self.break_now = addr
        return addr

    def madvise(self, addr: int, length: int, advice: str, /) -> None:
        self._range(addr, length)
        self._log("madvise", addr, length, advice)

    def fork(self) -> FakeMm:
        self._log("fork")
        child = attrs.evolve(self, pages=dict(self.pages))
        self.machine.mms.append(child)
        return child

    def exit(self) -> None:
        self._log("exit")
        self.pages.clear()
        self.dead = True

    def is_mapped(self, addr: int, /) -> bool:
        return addr // self.machine.page_size in self.pages


@attrs.define(eq=False)
class FakeCpu:
    machine: FakeMachine
    mm: FakeMm | None = None
    touched: list[NDArray[np.uint64]] = attrs.field(factory=list[NDArray[np.uint64]])

    def switch_mm(self, mm: Any, /) -> None:
        self.mm = mm

    def _run(
        self, first: NDArray[np.uint64], last: NDArray[np.uint64], op: NDArray[Any], start: int, stop: int
    ) -> int:
        """Pages first and last of each access must be mapped; a store needs a writable one."""
        assert self.mm is not None
        assert not self.mm.dead
        page = self.machine.page_size
        pages, order = np.unique(np.concatenate((first, last)), return_inverse=True)
        readable = np.array([int(p) in self.mm.pages for p in pages])
        writable = np.array(["w" in self.mm.pages.get(int(p), "") for p in pages])
        n = len(first)
        bad = np.zeros(n, np.bool_)
        for half in (order[:n], order[n:]):
            bad |= ~readable[half] | ((op >= 2) & ~writable[half])
        end = int(np.argmax(bad)) if bad.any() else n
        self.touched.append(first[:end])
        if end == n:
            return stop
        for where in (first, last):
            number = int(where[end])
            mapped = number in self.mm.pages
            if not mapped or (op[end] >= 2 and "w" not in self.mm.pages[number]):
                below = [s for s in self.machine.stacks if 0 < s - number * page <= 8 << 20]
                if not mapped and below:
                    for p in range(number, below[0] // page):
                        self.mm.pages.setdefault(p, "rw")
                    return self._run(first[end:], last[end:], op[end:], start + end, stop)
                fault = SegmentationFault(
                    number * page, "load", "not writable" if mapped else "no mapping here"
                )
                fault.index = start + end
                raise fault
        raise AssertionError

    def replay(self, op: Any, vaddr: Any, size: Any, start: int, stop: int, /) -> int:
        shift = np.uint64(self.machine.page_size.bit_length() - 1)
        rows = slice(start, stop)
        last = vaddr[rows] + (size[rows] - np.uint8(1))
        return self._run(vaddr[rows] >> shift, last >> shift, op[rows], start, stop)

    def replay_runs(self, vpn: Any, data: Any, write: Any, count: Any, start: int, stop: int, /) -> int:
        rows = slice(start, stop)
        assert len(vpn) == len(data) == len(count)
        return self._run(vpn[rows], vpn[rows], write[rows] * 2, start, stop)


class FakeMachine:
    """``task_size`` and ``page_size`` are what tests vary; 0x7ffffffff000 and 0xc0000000 are x86's."""

    driver = "solo"

    def __init__(self, task_size: int = 0x7FFF_FFFF_F000, page_size: int = 4096) -> None:
        self.page_size = page_size
        self.huge_page_sizes: tuple[int, ...] = ()
        self.task_size = self.stack_top = task_size
        self.first_user_address = page_size
        self.mmap_top = task_size - (128 << 20)
        self.log: list[tuple[object, ...]] = []
        self.mms: list[FakeMm] = []
        self.files: list[FakeFile] = []
        self.stacks: list[int] = []
        self.huge: list[tuple[int, int, int]] = []
        self.cpus = [FakeCpu(self)]

    def new_mm(self) -> FakeMm:
        self.mms.append(FakeMm(self))
        return self.mms[-1]

    def new_file(self, size: int, /, *, name: str = "") -> FakeFile:
        self.files.append(FakeFile(name, size))
        return self.files[-1]

    def spawn(self, name: str, cpu: int, mm: Any, body: Callable[[], None]) -> object:
        raise AssertionError("a solo machine has no tasks")

    def run_tasks(self) -> object:
        raise AssertionError("a solo machine has no tasks")

    def exit_mm(self) -> object:
        raise AssertionError("a solo machine has no tasks")

    def wait_queue(self, name: str, /, *, idle: bool = True) -> Any:
        raise AssertionError("a solo machine has no tasks")
