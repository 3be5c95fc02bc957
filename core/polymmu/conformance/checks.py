"""A group of checks: a class whose ``test_...`` methods take a ``Bench``.

A third party subclasses a group (or ``Suite``, which is all of them), names its arch, and pytest does the rest;
``polymmu conformance`` calls the same methods without pytest. A check raises AssertionError with place and value,
or NotApplicable with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from polymmu.conformance.bench import Bench
from polymmu.errors import UserMistake

__all__ = ["Check", "Checks", "checks_of"]

Check = Callable[[Bench], None]


class Checks:
    """Base of every group.

    ``arch``: the installed architecture to check. ``machines``: installed machines or files of it, the plain one
    where none is named. ``sets``: changes to each, as ``--set`` takes them.
    """

    arch: str = ""
    machines: Sequence[str] = ()
    sets: Sequence[str] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Called by pytest for each check: once per machine."""
        if "bench" in metafunc.fixturenames:
            arch = self.arch or metafunc.config.getoption("polymmu_arch", "")
            names = list(self.machines) or [""]
            try:
                benches = [known_bench(arch, name, tuple(self.sets)) for name in names]
            except UserMistake as mistake:
                import pytest

                pytest.fail(f"{type(self).__name__}: {mistake}", pytrace=False)
            metafunc.parametrize(
                "bench",
                benches,
                ids=[name or arch for name in names],
                scope="class",
            )


@functools.cache
def known_bench(arch: str, machine: str, sets: tuple[str, ...]) -> Bench:
    """``Bench.of``, once: pytest asks for it at every check, and a bench is a value."""
    return Bench.of(arch, machine, sets)


def checks_of(group: type[Checks]) -> Iterator[tuple[str, Check]]:
    """The checks of a group in the order they are written, without their ``test_``; inherited ones first."""
    instance = group()
    seen: dict[str, None] = {}
    for each in reversed(group.__mro__):
        seen |= dict.fromkeys(name for name in vars(each) if name.startswith("test_"))
    for name in seen:
        yield name.removeprefix("test_"), getattr(instance, name)
