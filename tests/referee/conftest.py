"""The host's kernel and a machine to compare with it, started once per module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from polymmu import Machine
from tests.referee.real import Zygote, why_not_here
from tests.referee.twins import Referee, Twin


@pytest.fixture(scope="module")
def referee() -> Iterator[Referee]:
    """Both sides; skips where this host cannot be the referee."""
    reason = why_not_here()
    if reason:
        pytest.skip(reason)
    with Zygote() as zygote:
        yield Referee(zygote, Machine.from_file("x86_64", sets=["kernel.overcommit=heuristic"]))


@pytest.fixture
def twin(referee: Referee) -> Iterator[Twin]:
    """A process on both sides, with nothing mapped."""
    yield referee.start()
    referee.end()
