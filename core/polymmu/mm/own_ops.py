"""Whose steps the mm core takes where it asks the architecture: its own, or one of them done as it once was.

A step that an architecture got wrong, or did otherwise, is a subclass of ``OwnOps`` with a method of a hook's name:
that method answers the hook, and ``own`` has the answers it stands in for. It is chosen by name like any other
deviation (``kernel: {ops: NAME}``, offered by ``kernel_variants``), lives in a plugin, and needs no architecture's
code. What is asked once, when the machine is made (the group ``shape``), cannot be replaced.
"""

from __future__ import annotations

from polymmu.errors import UserMistake
from polymmu.hooks import ArchKernel
from polymmu.mm.variant import Variant

__all__ = ["OwnOps"]


class OwnOps(Variant):
    """Each architecture's own."""

    since = "always"
    wrong = ""

    arches: tuple[str, ...] = ()
    """Whose step it is; empty: anybody's."""

    def __init__(self, kernel: ArchKernel) -> None:
        super().__init__(kernel)
        self.own = kernel.ops
        arch = kernel.description.arch
        if self.arches and arch not in self.arches:
            raise UserMistake(
                f"'{kernel.description.kernel.ops}' is a step of {', '.join(self.arches)}; this machine is {arch}",
                place="kernel.ops",
            )
