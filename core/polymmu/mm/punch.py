"""Punch a hole: some pages of a file read as zeroes from now on (fallocate with FALLOC_FL_PUNCH_HOLE).

Truncation tells faults by the file's size which pages they must not map any more. A hole lies inside the size; so what
is being punched is written to ``mapping.hole`` first, and a fault that looks below its table lock begins anew, and
waits below ``invalidate_lock``. Without that a page could be mapped between being unmapped and leaving the cache (54).

Private copies stay: they are the program's own by now.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from polymmu.errors import syscall_error
from polymmu.hooks import ArchKernel
from polymmu.mm.truncate import strategy_of
from polymmu.structs import File

__all__ = ["punch_hole"]


def punch_hole(kernel: ArchKernel, file: File, start: int, length: int) -> None:
    """Make bytes [start, start + length) of ``file`` zeroes. Whole pages of it; may sleep. Raises EINVAL."""
    page_size = file.huge_size or kernel.shape.layout.page_size
    if start < 0 or length <= 0 or start % page_size or length % page_size:
        raise syscall_error(errno.EINVAL, f"{start:#x} + {length:#x} is no range of whole pages of the file")
    shift = kernel.shape.layout.page_shift
    first, last = start >> shift, (start + length >> shift) - 1
    mapping = file.mapping
    mapping.i_mutex.lock()
    mapping.invalidate_lock.down_write()
    mapping.hole = first, last
    strategy_of(kernel).punch(mapping, first, last)
    file.written = {index: data for index, data in file.written.items() if not first <= index <= last}
    if file.read_page is not None:
        file.read_page = _without(file.read_page, first, last)
    mapping.hole = None
    mapping.invalidate_lock.up_write()
    mapping.i_mutex.unlock()


def _without(read_page: Callable[[int], bytes], first: int, last: int) -> Callable[[int], bytes]:
    return lambda index: b"" if first <= index <= last else read_page(index)
