"""What running a workload came to, besides what the machine itself counts."""

from __future__ import annotations

from typing import Any

import attrs

from polymmu.errors import SegmentationFault
from polymmu.workload.model import MmCall
from polymmu.workload.space import Relocation

__all__ = ["ExecutionResult", "RefusedCall"]


@attrs.frozen
class RefusedCall:
    """A call that succeeded when it was recorded and that this machine's kernel refused."""

    call: MmCall
    reason: str


@attrs.define
class ExecutionResult:
    """What a run did besides what the machine itself counts.

    ``done`` of ``total`` rows (accesses or page runs) were executed. ``segfault`` ended the run early: the
    program was killed. ``partial``: Ctrl-C ended it.
    """

    total: int
    done: int = 0
    calls_executed: int = 0
    calls_failed: int = 0
    """Calls that had failed when recorded: not made again."""
    calls_ignored: int = 0
    """Calls with no effect on mappings here: unmapped descriptors, queries, threads, ``ignore_mm_calls``."""
    refused: list[RefusedCall] = attrs.field(factory=list[RefusedCall])
    relocations: list[Relocation] = attrs.field(factory=list[Relocation])
    self_mapped_pages: int = 0
    small_for_huge: int = 0
    """Mappings of huge pages that this machine has not got, made of small ones."""
    processes: int = 1
    """The most that were alive at once."""
    segfault: SegmentationFault | None = None
    partial: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Keys to add to a run's report; ``finding`` and ``partial`` only where there is one."""
        told: dict[str, Any] = {
            "calls": {
                "executed": self.calls_executed,
                "failed": self.calls_failed,
                "ignored": self.calls_ignored,
                "refused": [
                    {"call": each.call.name, "position": each.call.pos, "reason": each.reason}
                    for each in self.refused
                ],
            },
            "relocated_mappings": len(self.relocations),
            "relocated": [
                {
                    "start": hex(each.start),
                    "end": hex(each.end),
                    "target": hex(each.target),
                    "reason": each.why,
                }
                for each in self.relocations
            ],
            "self_mapped_pages": self.self_mapped_pages,
            "small_for_huge": self.small_for_huge,
            "processes": self.processes,
        }
        if self.segfault is not None:
            told["finding"] = f"access {self.done}: {self.segfault}"
        if self.partial:
            told["partial"] = True
        return told
