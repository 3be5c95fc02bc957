"""What the compiled code must not do, and what the first run says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest
from numba import types

from polymmu.hardware.compile import MISS_SIGNATURE, OPTIONS
from polymmu.hardware.kernels import replay
from polymmu.hardware.walk_kernels import radix_miss

WORDS = types.int64[::1]
BYTES = types.uint8[::1]
REPLAY = types.int64(BYTES, WORDS, BYTES, types.int64, types.int64, WORDS, WORDS, WORDS)


@pytest.mark.parametrize(("kernel", "signature"), [(replay, REPLAY), (radix_miss, MISS_SIGNATURE)])
def test_hot_kernels_count_no_references(kernel: Any, signature: Any) -> None:
    # Compiled anew, because code from the cache cannot be inspected.
    fresh = numba.njit(**OPTIONS)(kernel.py_func)
    fresh.compile(signature)
    (assembly,) = fresh.inspect_asm().values()
    assert "NRT_" not in assembly
    assert len(assembly) > 10_000


SCRIPT = """
import numpy as np
from polymmu.hardware.compile import kernel, step
import sys
sys.path.insert(0, {folder!r})
import generated
print(generated.doubled(np.arange(3)))
"""
KERNEL = """
from polymmu.hardware.compile import kernel, step
FACTOR = {factor}

@step
def twice(value):
    return value * FACTOR

@kernel
def doubled(values):
    total = 0
    for value in values:
        total += twice(value)
    return total
"""


def test_the_first_run_says_that_it_compiles_and_a_changed_constant_is_noticed(tmp_path: Path) -> None:
    core = Path(__file__).parents[2] / "core"

    def run(factor: int) -> tuple[str, str]:
        source = tmp_path / "generated.py"
        source.write_text(KERNEL.format(factor=factor))
        os.utime(source, (1_000_000_000, 1_000_000_000))  # the file looks untouched
        done = subprocess.run(
            [sys.executable, "-B", "-c", SCRIPT.format(folder=str(tmp_path))],
            env={"PYTHONPATH": str(core), "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip(), done.stderr.strip()

    message = "polymmu: compiling kernels (first run only) ..."
    assert run(2) == ("6", message)
    assert run(2) == ("6", "")
    assert run(3) == ("9", message)
