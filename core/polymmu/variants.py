"""The algorithms that the machine file's ``kernel:`` section may choose by name, and how plugins bring more.

The core holds today's choice on each axis. A plugin (an entry point in the group ``polymmu.plugin``) implements
``kernel_variants`` to offer earlier generations, or known bugs; none is loaded while the core's own will do.
A variant is a class whose steps are methods (``mm.variant``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs
import pluggy

from polymmu.description.model import KernelChoice
from polymmu.errors import PluginMistake, UserMistake
from polymmu.hooks import ArchKernel
from polymmu.mm.clusters import ClusterScan
from polymmu.mm.gather import LinkedGather
from polymmu.mm.gup import GetUserPages
from polymmu.mm.interval_tree import IntervalTrees
from polymmu.mm.move import Extents
from polymmu.mm.own_ops import OwnOps
from polymmu.mm.pgtables import VmaList
from polymmu.mm.prio_tree import PrioTrees
from polymmu.mm.ptlock import SplitTableLocks
from polymmu.mm.recheck import CacheRecheck
from polymmu.mm.rmap import FlushEach
from polymmu.mm.swap import SwapIn
from polymmu.mm.truncate import RestartCount
from polymmu.mm.variant import Variant
from polymmu.mm.zap import ZapWork
from polymmu.plugins import installed, load, suggestion

__all__ = ["GROUP", "VARIANTS", "Variants", "chosen", "classes", "hookimpl"]

GROUP = "polymmu.plugin"
hookspec = pluggy.HookspecMarker("polymmu_variants")
hookimpl = pluggy.HookimplMarker("polymmu_variants")

VARIANTS: Mapping[str, Mapping[str, type[Variant]]] = {
    "free_pgtables": {"vma_list": VmaList},
    "page_table_lock": {"split": SplitTableLocks},
    "try_to_unmap": {"flush-each": FlushEach},
    "cluster_scan": {"lockbreak": ClusterScan},
    "gather": {"linked": LinkedGather},
    "rmap_tree": {"prio": PrioTrees, "interval": IntervalTrees},
    "unmap_vmas": {"work": ZapWork},
    "truncate": {"restart-count": RestartCount},
    "fault_recheck": {"cache": CacheRecheck},
    "mremap": {"extents": Extents},
    "ops": {"own": OwnOps},
    "gup": {"foll-write": GetUserPages},
    "swap_in": {"by-slot": SwapIn},
}
"""The core's own, by axis and name."""


class VariantSpec:
    """What a plugin with variants answers."""

    @hookspec
    def kernel_variants(self) -> Mapping[str, Mapping[str, type[Variant]]]:
        """Called when a machine file chooses a variant that the core does not have. Classes by axis and name.

        Axes are keys of the ``kernel:`` section (``gather``, ``free_pgtables``). A name that another plugin has too is
        refused.
        """
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Variants:
    """One machine's, each made and ready."""

    try_to_unmap: FlushEach
    cluster_scan: ClusterScan
    gather: LinkedGather
    free_pgtables: VmaList
    page_table_lock: SplitTableLocks
    rmap_tree: IntervalTrees | PrioTrees
    unmap_vmas: ZapWork
    truncate: RestartCount
    fault_recheck: CacheRecheck
    mremap: Extents
    ops: OwnOps
    gup: GetUserPages
    swap_in: SwapIn


def chosen(kernel: ArchKernel) -> Variants:
    """What the kernel's description asks for, made. Raises UserMistake for a name nobody offers, and for choices that
    make no sense together; PluginMistake for a plugin that does not load."""
    made: dict[str, Any] = {
        axis: variant(kernel) for axis, variant in classes(kernel.description.kernel).items()
    }
    return Variants(**made)


def classes(choice: KernelChoice) -> dict[str, type[Variant]]:
    """What a ``kernel:`` section asks for, by axis. Raises as ``chosen`` does."""
    return {axis: _class_of(axis, getattr(choice, axis), choice) for axis in VARIANTS}


def _class_of(axis: str, name: str, choice: KernelChoice) -> type[Variant]:
    known = VARIANTS[axis]
    if name not in known:
        known = {**known, **_offered(axis)}
    variant = known.get(name)
    if variant is None:
        raise UserMistake(f"unknown {axis} '{name}'{suggestion(name, sorted(known))}", place=f"kernel.{axis}")
    reason = variant.refuses(choice)
    if reason:
        raise UserMistake(reason, place=f"kernel.{axis}")
    return variant


def plugins_installed() -> tuple[tuple[str, object], ...]:
    """Every installed plugin of the group by name."""
    return tuple((name, load(row)) for name, row in installed(GROUP).items())


def _offered(axis: str) -> dict[str, type[Variant]]:
    """What plugins have on an axis."""
    manager = pluggy.PluginManager("polymmu_variants")
    manager.add_hookspecs(VariantSpec)
    found: dict[str, type[Variant]] = {}
    for plugin, module in plugins_installed():
        try:
            manager.register(module, name=plugin)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginMistake(plugin, "kernel_variants", " ".join(str(error).split())) from None
        for impl in manager.hook.kernel_variants.get_hookimpls():
            if impl.plugin_name != plugin:
                continue
            answer = cast("Mapping[str, Mapping[str, type[Variant]]]", impl.function())
            for name, variant in answer.get(axis, {}).items():
                if name in found or name in VARIANTS[axis]:
                    raise UserMistake(
                        f"{axis} '{name}' is offered twice, the second time by plugin '{plugin}'; uninstall one",
                        place=f"kernel.{axis}",
                    )
                found[name] = variant
    return found
