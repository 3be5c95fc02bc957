"""What a walk that came to no page may leave behind: the tables on its way, in paging-structure caches."""

from __future__ import annotations

from polymmu.hardware.compile import Words, kernel, pointer_to
from polymmu.hardware.walk_kernels import keep_path

__all__ = ["keep_upper"]


@kernel
def keep_upper(words: Words, va: int, last: int) -> None:
    """Keep the tables that the last walk, from the root, went through above level ``last``."""
    keep_path(pointer_to(words), va, 0, last)
