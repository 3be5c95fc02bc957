"""What running a workload needs of a machine: the public handles' calls, and nothing behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["CpuHandle", "FileHandle", "MachineHandle", "MmHandle", "WaitQueue"]


class FileHandle(Protocol):
    """A file that can be mapped."""

    def truncate(self, size: int, /) -> object: ...


class MmHandle(Protocol):
    """One address space. Calls that the kernel refuses raise ``SyscallError``."""

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
    ) -> int: ...

    def munmap(self, addr: int, length: int, /) -> object: ...

    def mprotect(self, addr: int, length: int, prot: str, /) -> object: ...

    def mremap(
        self, addr: int, old_length: int, new_length: int, /, *, may_move: bool = True, to: int | None = None
    ) -> int: ...

    def brk(self, addr: int, /) -> int: ...

    def set_brk_start(self, addr: int, /) -> object: ...

    def madvise(self, addr: int, length: int, advice: str, /) -> object: ...

    def fork(self) -> MmHandle: ...

    def exit(self) -> object: ...

    def is_mapped(self, addr: int, /) -> bool: ...


class WaitQueue(Protocol):
    """Where tasks wait for each other."""

    def wait_event(self, condition: Callable[[], bool], /) -> None: ...

    def wake_up_all(self) -> None: ...


class CpuHandle(Protocol):
    """A CPU that replays accesses.

    Both replays return ``stop``, or raise ``SegmentationFault`` whose ``index`` is the access that failed:
    all before it are done, and a call that starts there goes on.
    """

    @property
    def index(self) -> int: ...

    def switch_mm(self, mm: Any, /) -> object: ...

    def replay(
        self, op: NDArray[Any], vaddr: NDArray[Any], size: NDArray[Any], start: int, stop: int, /
    ) -> int: ...

    def replay_runs(
        self,
        vpn: NDArray[Any],
        data: NDArray[Any],
        write: NDArray[Any],
        count: NDArray[Any],
        start: int,
        stop: int,
        /,
    ) -> int: ...


class MachineHandle(Protocol):
    """A machine: ``task_size`` is the end of user addresses, ``first_user_address`` their beginning.

    What concerns tasks is called under the ``driver`` "timed" only.
    """

    @property
    def driver(self) -> str: ...

    @property
    def page_size(self) -> int: ...

    @property
    def huge_page_sizes(self) -> tuple[int, ...]: ...

    @property
    def task_size(self) -> int: ...

    @property
    def stack_top(self) -> int: ...

    @property
    def first_user_address(self) -> int: ...

    @property
    def cpus(self) -> Sequence[Any]: ...

    def new_mm(self) -> Any: ...

    def new_file(self, size: int, /, *, name: str = "") -> Any: ...

    def spawn(self, name: str, cpu: int, mm: Any, body: Callable[[], None], /) -> object: ...

    def run_tasks(self) -> object: ...

    def exit_mm(self) -> object: ...

    def wait_queue(self, name: str, /, *, idle: bool = True) -> WaitQueue: ...
