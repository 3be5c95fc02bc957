"""polymmu: run real programs' memory behaviour on any architecture's MMU, exactly.

    import polymmu
    machine = polymmu.Machine.from_file("x86_64")

Names are loaded when first used (PEP 562), so that the command line's ``--help`` needs no numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polymmu.api import Machine, compare
    from polymmu.errors import PluginMistake, PolymmuError, SegmentationFault, SyscallError, UserMistake
    from polymmu.exploration.explored import explore
    from polymmu.exploration.replay_file import replay
    from polymmu.report import Report
    from polymmu.workload.model import Workload

    __version__: str

__all__ = [
    "Machine",
    "PluginMistake",
    "PolymmuError",
    "Report",
    "SegmentationFault",
    "SyscallError",
    "UserMistake",
    "Workload",
    "__version__",
    "compare",
    "explore",
    "replay",
]

_HOMES = {
    "Machine": "polymmu.api",
    "compare": "polymmu.api",
    "explore": "polymmu.exploration.explored",
    "replay": "polymmu.exploration.replay_file",
    "PluginMistake": "polymmu.errors",
    "PolymmuError": "polymmu.errors",
    "SegmentationFault": "polymmu.errors",
    "SyscallError": "polymmu.errors",
    "UserMistake": "polymmu.errors",
    "Report": "polymmu.report",
    "Workload": "polymmu.workload.model",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("polymmu")
    if name not in _HOMES:
        raise AttributeError(f"module 'polymmu' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
