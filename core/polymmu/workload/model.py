"""One model of what a program did to memory, whatever file it came from.

A workload is memory accesses (one by one, or collapsed to page runs, or none), the memory system calls that
happened between them, and the mappings that existed before the first instruction. System calls are always
told in the words and flag values of x86-64 Linux, which all our readers produce; they say what the recorded
program asked for, not what machine it will run on.

Addresses and sizes are in bytes unless a name says otherwise. A position counts accesses from 0: a call at
position p happened after access p - 1 and before access p.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FETCH",
    "LOAD",
    "MODIFY",
    "STORE",
    "AccessColumns",
    "InitialMapping",
    "MmCall",
    "PageRuns",
    "ThreadSlice",
    "Workload",
]

FETCH, LOAD, STORE, MODIFY = range(4)
"""The values of an ``op`` column; a modify is a load and then a store of the same bytes."""


@attrs.frozen(eq=False)
class AccessColumns:
    """Accesses in program order over all threads, one row each."""

    op: NDArray[np.uint8]
    vaddr: NDArray[np.uint64]
    size: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.op)


@attrs.frozen(eq=False)
class PageRuns:
    """Accesses collapsed to runs: consecutive page touches of one class (fetch, data) on one page.

    ``vpn`` is the address shifted right by ``page_shift``; ``data`` 0 fetch, 1 load or store; ``write`` 1 if
    any access of the run wrote; ``count`` page touches merged (an access that crosses a page boundary
    touches both); ``pos`` the position of the run's first access. Exact for split level-1 TLBs, not for a
    unified one: which class came first inside overlapping runs is lost.
    """

    vpn: NDArray[np.uint64]
    data: NDArray[np.uint8]
    write: NDArray[np.uint8]
    count: NDArray[np.uint32]
    pos: NDArray[np.uint64]
    page_shift: int

    def __len__(self) -> int:
        return len(self.vpn)


@attrs.frozen
class MmCall:
    """One system call that made, changed or ended mappings, files or processes.

    ``process`` is the thread group (all its threads share one mm and one table of open files), ``args`` are
    as recorded, short where the recorder printed fewer than six. ``ret`` is what the call returned,
    ``-errno`` if it failed, None if it never returned. ``path`` is the file's name where the recorder knew
    it.
    """

    pos: int
    tid: int
    process: int
    name: str
    args: tuple[int, ...]
    ret: int | None
    path: str = ""

    @property
    def failed(self) -> bool:
        """Whether the recorded kernel refused it: the return value is in the range of errno values."""
        return self.ret is not None and -4096 < self.ret < 0

    def arg(self, index: int) -> int:
        """Argument ``index``, 0 where the recorder printed fewer."""
        return self.args[index] if index < len(self.args) else 0


@attrs.frozen
class ThreadSlice:
    """From access ``pos`` on, thread ``tid`` runs."""

    pos: int
    tid: int


@attrs.frozen
class InitialMapping:
    """A mapping that existed before the first instruction: [start, end), ``prot`` a subset of ``rwx``."""

    start: int
    end: int
    prot: str
    is_file: bool


@attrs.frozen(eq=False, kw_only=True)
class Workload:
    """A checked workload: positions ascend, every address range stays below 2**64.

    ``sha256`` is of the file's bytes as they lie on disk. ``meta`` is what the recorder noted about the
    program.
    """

    name: str
    sha256: str
    format: str
    accesses: AccessColumns | PageRuns | None = None
    calls: tuple[MmCall, ...] = ()
    threads: tuple[ThreadSlice, ...] = ()
    initial: tuple[InitialMapping, ...] = ()
    meta: dict[str, Any] = attrs.field(factory=dict[str, Any])
