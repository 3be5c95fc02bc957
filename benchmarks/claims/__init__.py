"""What the great changes of Linux's mm bought, as figures: ``python -m benchmarks claims [MACHINE...]``.

Unlike the other benchmarks these look at no clock of the host: they count cycles of the machine file, so every figure
is the same everywhere, and ``docs/claims.md`` holds all of them. A claim is a sentence that history makes, a scenario
before and after, and a judge that says on which machines the figures bear the sentence out, and on which they do not.

One module per claim, each ending in a ``CLAIM``; adding one is adding it to the list below.
"""

from __future__ import annotations

from benchmarks.claims import (
    fallback,
    flush_outside_lock,
    gather_latency,
    gather_memory,
    program,
    rmap,
    shootdowns,
    small_processes,
    table_freeing,
    truncation,
)
from benchmarks.claims.model import Claim

__all__ = ["CLAIMS"]

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        gather_latency.CLAIM,
        gather_memory.CLAIM,
        flush_outside_lock.CLAIM,
        shootdowns.CLAIM,
        table_freeing.CLAIM,
        fallback.CLAIM,
        truncation.CLAIM,
        small_processes.CLAIM,
        rmap.CLAIM,
        program.CLAIM,
    )
}
