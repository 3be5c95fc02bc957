"""The workers of a Dask cluster, for explorations that one machine is too small for.

``connect`` is an entry of the group ``polymmu.workers``. The cluster's workers need the same versions of polymmu and
of its plugins, and machine files that are no installed ones at the same paths. Nothing of Dask is imported before
somebody asks for it: it is an extra.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from polymmu.errors import UserMistake
from polymmu.workers import Workers

__all__ = ["PATIENCE", "connect"]

PATIENCE = 10
"""Seconds to wait for a scheduler, and for its first worker."""
Result = TypeVar("Result")


class Cluster:
    """Workers that a client knows."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._executor = client.get_executor(pure=False)

    @property
    def count(self) -> int:
        """See ``Workers``: as many as there are now, for they come and go."""
        threads: dict[str, int] = self._client.nthreads()
        return max(sum(threads.values()), 1)

    def submit(self, function: Callable[..., Result], /, *args: Any) -> Future[Result]:
        """See ``Workers``."""
        future: Future[Result] = self._executor.submit(function, *args)
        return future


@contextmanager
def connect(address: str) -> Iterator[Workers]:
    """The workers of the scheduler at ``address``. Raises UserMistake where there is none."""
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise UserMistake(
            "a Dask cluster needs the extra 'dask'; pip install 'polymmu[dask]'", place=address
        ) from None
    try:
        client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserMistake(
            f"no Dask scheduler answers ({_first_line(error)}); is it running there, and reachable?",
            place=address,
        ) from None
    try:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise UserMistake(
                "the Dask scheduler has no workers; start some with 'dask worker'", place=address
            ) from None
        yield Cluster(client)
    finally:
        client.close()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
