"""The pytest plugin: ``--polymmu-arch NAME`` and the fixture ``polymmu_machine``.

pytest loads it in every project of the environment, so it imports nothing of polymmu until a test asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from polymmu.machine import Machine

__all__ = ["polymmu_machine", "pytest_addoption"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option."""
    parser.getgroup("polymmu").addoption(
        "--polymmu-arch",
        metavar="NAME",
        default="",
        help="architecture for the fixture polymmu_machine, and for kit classes that name none",
    )


@pytest.fixture
def polymmu_machine(request: pytest.FixtureRequest) -> Machine:
    """A fresh small machine (two CPUs) of the architecture that ``--polymmu-arch`` names."""
    from polymmu.conformance import Bench

    arch = request.config.getoption("polymmu_arch")
    if not arch:
        pytest.skip("no architecture; give --polymmu-arch NAME")
    return Bench.of(arch).world().machine
