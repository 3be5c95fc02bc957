"""Reading the captured page-table sets of ``tests/data/pagetables`` and asking our walker the same questions.

The answers come from QEMU (`q_pa`, `q_flags`), from the guest kernel's own /proc/PID/pagemap (`pm_raw`) and from the
Unicorn engine (`perm`); see the README there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[1] / "data" / "pagetables"
NOT_MAPPED = 0xFFFF_FFFF_FFFF_FFFF


def load(name: str) -> dict[str, Any]:
    """Every array of a set, and ``meta`` parsed."""
    with np.load(DATA / name) as archive:
        arrays: dict[str, Any] = {key: archive[key] for key in archive.files}
    arrays["meta"] = json.loads(str(arrays["meta"]))
    return arrays
