"""Page tables of real 32-bit Debian kernels, two-level and PAE, address by address."""

from __future__ import annotations

from tests.arches.captured_checks import CapturedTables


class TestTwoLevelKernel(CapturedTables):
    file = "i386.npz"
    machine = "x86"


class TestPaeKernel(CapturedTables):
    file = "i386-pae.npz"
    machine = "x86-pae"
