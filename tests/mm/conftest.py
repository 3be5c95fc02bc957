"""A kernel on each of the two toy architectures."""

from __future__ import annotations

import pytest

from polymmu.hooks import ArchKernel
from polymmu.structs import mm_struct
from tests.mm.toy import ARCHES, boot, new_mm


@pytest.fixture(params=sorted(ARCHES))
def kernel(request: pytest.FixtureRequest) -> ArchKernel:
    return boot(ARCHES[request.param])


@pytest.fixture
def mm(kernel: ArchKernel) -> mm_struct:
    return new_mm(kernel)
