"""One decorator for every compiled function of the project, and one line when a compiler really runs.

Kernels compile when they are first called and are kept in numba's on-disk cache, so only the first run of
an installed version waits. Three traps are closed here, once:

* Numba's cache looks at the file of the function it compiles, not at the helpers that are linked into it
  nor at the constants it was compiled with. ``kernel`` stamps the cache with all of them.
* Announcing: a first run takes seconds instead of milliseconds, and says so.
* Passing a compiled function from Python as a numba first-class function costs 27 microseconds a call.
  ``call_miss`` therefore calls through a plain address, which a CPU keeps in its state; one compiled loop
  then serves every architecture's miss routine.

First reading: only ``kernel`` matters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.core import event as numba_event
from numba.core.dispatcher import Dispatcher
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["MISS_SIGNATURE", "Words", "address_of", "call_miss", "kernel", "pointer_at", "pointer_to", "step"]


class Words(Protocol):
    """64-bit words, as the source of a kernel sees them: an array, or the pointer that steps work with."""

    @property
    def size(self) -> int:
        """Number of words; only an array knows it."""
        ...

    def __getitem__(self, place: Any, /) -> int:
        """The word at ``place``."""
        ...

    def __setitem__(self, place: Any, value: int, /) -> None:
        """Change the word at ``place``."""
        ...


WORDS = types.int64[::1]
POINTER: Any = types.CPointer(types.int64)  # type: ignore[no-untyped-call]
MISS_SIGNATURE = types.int64(POINTER, POINTER, types.int64, types.int64, types.int64)
"""``fault = miss(state, ram, va, access, mode)``; ``walk_kernels`` says what it must do."""


class _Announcer(numba_event.Listener):
    """Says once that a compiler runs. Cache hits trigger no such event."""

    said = False

    def on_start(self, event: Any) -> None:
        if not self.said and event.data["dispatcher"] in _ours:
            self.said = True
            print("polymmu: compiling kernels (first run only) ...", file=sys.stderr, flush=True)

    def on_end(self, event: Any) -> None:
        """Nothing to say when it is over."""


_ours: set[Any] = set()
numba_event.register(  # type: ignore[no-untyped-call]
    "numba:compile", _Announcer()
)


def _ingredients(function: Any, found: dict[str, tuple[float, ...]]) -> None:
    """Collect every source file and every constant that ends up in the machine code of ``function``."""
    path = Path(function.__code__.co_filename)
    if path.exists():
        status = path.stat()
        found[str(path)] = (status.st_mtime, status.st_size)
    found[f"{function.__module__}.{function.__qualname__}"] = ()
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, Dispatcher):
            helper = value.py_func
            if f"{helper.__module__}.{helper.__qualname__}" not in found:
                _ingredients(helper, found)
        elif isinstance(value, int):
            found[f"{function.__module__}.{name}"] = (int(value),)


OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "_nrt": False}
"""Division and indexing follow machine arithmetic; no reference counts, so a kernel cannot make arrays."""


def kernel(function: F) -> F:
    """Compile ``function`` with the project's options at its first call, and keep the result on disk.

    Returns a numba dispatcher. Where no cache directory can be written, the kernel compiles in every
    process.
    """
    compiled: Any
    try:
        compiled = numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # "cannot cache function": neither the package nor the user's directory is writable
        compiled = numba.njit(**OPTIONS)(function)
    _ours.add(compiled)
    cache_file = getattr(compiled._cache, "_cache_file", None)
    if cache_file is not None:
        found: dict[str, tuple[float, ...]] = {}
        _ingredients(function, found)
        cache_file._source_stamp = (cache_file._source_stamp, sorted(found.items()))
    return cast(F, compiled)


def step(function: F) -> F:
    """Compile ``function`` as a part of the kernels that call it: always inlined, never called alone.

    A call between compiled functions passes each array as seven words, which is slower than most steps.
    """
    return cast(F, numba.njit(forceinline=True, **OPTIONS)(function))


def address_of(routine: Any) -> int:
    """The address of a kernel compiled (now, if need be) for ``MISS_SIGNATURE``; valid in this process."""
    routine.compile(MISS_SIGNATURE)
    result = routine.get_compile_result(MISS_SIGNATURE)
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name))


def _call_miss(
    typing_context: Any, address: Any, state: Any, ram: Any, va: Any, access: Any, mode: Any
) -> Any:
    """Call the miss routine at ``address``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        pointer = word.as_pointer()
        function = ir.FunctionType(word, [pointer, pointer, word, word, word])
        return builder.call(builder.inttoptr(args[0], function.as_pointer()), list(args[1:]))

    return types.int64(types.int64, POINTER, POINTER, types.int64, types.int64, types.int64), generate


def _pointer_to(typing_context: Any, array: Any) -> Any:
    """The place of an array's first word. Indexing it checks nothing, not even for negative places."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(WORDS)(context, builder, args[0]).data

    return POINTER(WORDS), generate


def _pointer_at(typing_context: Any, address: Any) -> Any:
    """The words at a host address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(64).as_pointer())

    return POINTER(types.int64), generate


call_miss = cast("Callable[[int, Words, Words, int, int, int], int]", intrinsic(_call_miss))
pointer_to = cast("Callable[[Words], Words]", intrinsic(_pointer_to))
pointer_at = cast("Callable[[int], Words]", intrinsic(_pointer_at))
