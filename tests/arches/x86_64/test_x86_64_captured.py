"""Page tables of a real 64-bit Debian kernel, address by address."""

from __future__ import annotations

from tests.arches.captured_checks import CapturedTables


class TestFourLevelKernel(CapturedTables):
    file = "x86_64.npz"
    machine = "x86_64"
