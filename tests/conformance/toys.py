"""Benches of the toy architectures of tests.mm.toy: the kit on something small, and on something broken."""

from __future__ import annotations

from polymmu.conformance import Bench
from polymmu.description.model import MachineDescription, TlbSpec, WalkCacheSpec
from polymmu.registry import Arch
from tests.mm.toy import ODD, PAGE, TOY

__all__ = ["ODD", "TOY", "bench_of"]


def bench_of(arch: Arch = TOY) -> Bench:
    """``arch`` on two CPUs with a few megabytes."""
    return Bench(
        arch,
        MachineDescription(
            name=arch.name,
            arch=arch.name,
            cpus=2,
            memory=32 << 20,
            tlbs={"L1": TlbSpec(level=1, page_sizes=(PAGE,), entries=64, ways=4)},
            walk_caches={"PDE": WalkCacheSpec(level=1, entries=4, ways=4)},
            section=arch.ops.config_class()(),
        ),
    )
