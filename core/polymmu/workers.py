"""Whoever does a part of the work: other processes of this machine, or of many.

A kind of workers is a function of an address that returns a context manager of ``Workers``; plugins bring them under
the entry-point group ``polymmu.workers``. Processes of this machine are core's own.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar, cast

import attrs

from polymmu import plugins
from polymmu.errors import UserMistake

__all__ = ["Workers", "connect", "in_order", "processes"]

GROUP = "polymmu.workers"
TICK = 0.1
"""Seconds between two looks whether to stop."""
Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers(Protocol):
    """Some workers; ``count`` of them at once. Functions and what they take and give are pickled."""

    @property
    def count(self) -> int:
        """How many jobs are done at a time."""
        ...

    def submit(self, function: Callable[..., Result], /, *args: Any) -> Future[Result]:
        """Have ``function`` called somewhere."""
        ...


@attrs.frozen
class Pool:
    """Workers behind an executor."""

    executor: Executor
    count: int

    def submit(self, function: Callable[..., Result], /, *args: Any) -> Future[Result]:
        """See ``Workers``."""
        return self.executor.submit(function, *args)


@contextmanager
def processes(count: int, preload: str) -> Iterator[Workers]:
    """``count`` processes of this machine, which import ``preload`` beforehand. They end with the context, at once:
    whoever leaves it has no use for what is not done."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([preload])
    others = multiprocessing.active_children()
    # Ctrl-C in a terminal reaches the workers, too: whoever started them ends them.
    executor = ProcessPoolExecutor(count, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield Pool(executor, count)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in others:
                child.terminate()
        executor.shutdown()


def connect(kind: str, address: str) -> AbstractContextManager[Workers]:
    """The workers that a plugin knows at ``address``. Raises UserMistake."""
    found = plugins.installed(GROUP)
    if kind not in found:
        raise UserMistake(f"no workers of kind '{kind}'{plugins.suggestion(kind, list(found))}")
    return cast(Callable[[str], AbstractContextManager[Workers]], plugins.load(found[kind]))(address)


def in_order(
    workers: Workers,
    pending: deque[Job],
    submit: Callable[[Job], Future[Result]],
    stop: Callable[[], bool],
) -> Generator[tuple[Job, Result], None, None]:
    """Jobs with their results in the order of ``pending``, whoever was done first; that may grow meanwhile.

    Ends when nothing is left, or when ``stop`` says so; what has no result then is in ``pending`` again.
    """
    running: deque[tuple[Job, Future[Result]]] = deque()
    try:
        while pending or running:
            while pending and len(running) < 2 * workers.count:
                running.append((pending[0], submit(pending[0])))
                pending.popleft()
            job, future = running[0]
            while not wait([future], TICK).done:
                if stop():
                    return
            result = future.result()
            running.popleft()
            yield job, result
    finally:
        for _, future in running:
            future.cancel()
        pending.extendleft(job for job, _ in reversed(running))
