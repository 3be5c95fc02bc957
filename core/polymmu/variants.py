"""The algorithms that the machine file's ``kernel:`` section may choose by name, and how plugins bring more.

The core holds today's choice on each axis. A plugin (an entry point in the group ``polymmu.plugin``) implements
``kernel_variants`` to offer earlier generations, or known bugs; none is loaded while the core's own will do.
A variant is a class whose steps are methods: it is made once per machine, with the kernel as its argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs
import pluggy

from polymmu.description.model import KernelChoice
from polymmu.errors import PluginMistake, UserMistake
from polymmu.hooks import ArchKernel
from polymmu.mm.gather import LinkedGather
from polymmu.mm.move import Extents
from polymmu.mm.recheck import CacheRecheck
from polymmu.mm.truncate import RestartCount
from polymmu.mm.zap import ZapWork
from polymmu.plugins import installed, load, suggestion

__all__ = ["GROUP", "VARIANTS", "Variants", "chosen", "hookimpl"]

GROUP = "polymmu.plugin"
hookspec = pluggy.HookspecMarker("polymmu_variants")
hookimpl = pluggy.HookimplMarker("polymmu_variants")

VARIANTS: Mapping[str, Mapping[str, type[Any]]] = {
    "gather": {"linked": LinkedGather},
    "unmap_vmas": {"work": ZapWork},
    "truncate": {"restart-count": RestartCount},
    "fault_recheck": {"cache": CacheRecheck},
    "mremap": {"extents": Extents},
}
"""The core's own, by axis and name."""


class VariantSpec:
    """What a plugin with variants answers."""

    @hookspec
    def kernel_variants(self) -> Mapping[str, Mapping[str, type[Any]]]:
        """Called when a machine file chooses a variant that the core does not have. Classes by axis and name.

        Axes are keys of the ``kernel:`` section (``gather``). A name that another plugin has too is refused.
        """
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Variants:
    """One machine's, each made and ready."""

    gather: LinkedGather
    unmap_vmas: ZapWork
    truncate: RestartCount
    fault_recheck: CacheRecheck
    mremap: Extents


def chosen(kernel: ArchKernel) -> Variants:
    """What the kernel's description asks for. Raises UserMistake for a name nobody offers, and for choices that make
    no sense together; PluginMistake for a plugin that does not load."""
    choice = kernel.description.kernel
    return Variants(**{axis: _class_of(axis, getattr(choice, axis), choice)(kernel) for axis in VARIANTS})


def _class_of(axis: str, name: str, choice: KernelChoice) -> type[Any]:
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


def _offered(axis: str) -> dict[str, type[Any]]:
    """What plugins have on an axis."""
    manager = pluggy.PluginManager("polymmu_variants")
    manager.add_hookspecs(VariantSpec)
    found: dict[str, type[Any]] = {}
    for plugin, module in plugins_installed():
        try:
            manager.register(module, name=plugin)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginMistake(plugin, "kernel_variants", " ".join(str(error).split())) from None
        for impl in manager.hook.kernel_variants.get_hookimpls():
            if impl.plugin_name != plugin:
                continue
            answer = cast("Mapping[str, Mapping[str, type[Any]]]", impl.function())
            for name, variant in answer.get(axis, {}).items():
                if name in found or name in VARIANTS[axis]:
                    raise UserMistake(
                        f"{axis} '{name}' is offered twice, the second time by plugin '{plugin}'; uninstall one",
                        place=f"kernel.{axis}",
                    )
                found[name] = variant
    return found
