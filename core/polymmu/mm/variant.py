"""What the classes have in common that the ``kernel:`` section chooses between, one for each axis.

Their steps are methods, cut where history changed one; an earlier generation, or a known bug, is a subclass that
replaces one step.
"""

from __future__ import annotations

from polymmu.description.model import KernelChoice
from polymmu.hooks import ArchKernel

__all__ = ["Variant"]


class Variant:
    """Made once per machine. Each class says of itself when it came (``since``) and what it gets wrong, if anything:
    the documentation has tables of that."""

    since: str
    wrong: str

    def __init__(self, kernel: ArchKernel) -> None:
        self.kernel = kernel

    @staticmethod
    def refuses(choice: KernelChoice) -> str:
        """Why this makes no sense beside the other choices; empty where it does."""
        return ""
