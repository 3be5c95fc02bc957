"""The names a user imports: a machine that can also run workloads, and comparisons.

``machine.Machine`` knows nothing of workloads; here the two are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import overload

from polymmu import machine as _machine
from polymmu.hardware.ram import Ram
from polymmu.images import Image
from polymmu.report import Report
from polymmu.translation import Translated, translate
from polymmu.workload.execute import execute
from polymmu.workload.model import Workload
from polymmu.workload.readers import open_workload

__all__ = ["Machine", "compare"]


class Machine(_machine.Machine):
    """A machine that runs workloads."""

    @classmethod
    def from_file(cls, name_or_path: str | Path, *, sets: Sequence[str] = ()) -> Machine:
        """The installed machine called so, or the one a YAML file describes. Raises UserMistake."""
        description, arch = cls.describe(name_or_path, sets=sets)
        return cls(description, arch, sets=sets)

    def run(
        self,
        workload: Workload | str | Path,
        *,
        ignore_mm_calls: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Run a workload (or the file that holds one) and report everything counted on this machine so far.

        Interrupted (Ctrl-C) it returns what it has, with ``"partial": true``. Raises UserMistake where the
        workload cannot be read, or does not fit this machine.
        """
        if not isinstance(workload, Workload):
            workload = open_workload(workload)
        outcome = execute(self, workload, ignore_mm_calls=ignore_mm_calls, progress=progress)
        return self.report(workload=workload.name, workload_sha256=workload.sha256, extra=outcome.to_dict())

    @overload
    def translate(
        self,
        va: int,
        *,
        memory: str | Path | Image | Ram | None = None,
        registers: Mapping[str, int] | None = None,
        access: str | None = None,
        privilege: str = "supervisor",
        space: str | None = None,
    ) -> Translated: ...

    @overload
    def translate(
        self,
        va: Iterable[int],
        *,
        memory: str | Path | Image | Ram | None = None,
        registers: Mapping[str, int] | None = None,
        access: str | None = None,
        privilege: str = "supervisor",
        space: str | None = None,
    ) -> list[Translated]: ...

    def translate(
        self,
        va: int | Iterable[int],
        *,
        memory: str | Path | Image | Ram | None = None,
        registers: Mapping[str, int] | None = None,
        access: str | None = None,
        privilege: str = "supervisor",
        space: str | None = None,
    ) -> Translated | list[Translated]:
        """What an address (or each of an array) means under the tables in ``memory``.

        ``memory``: an image file; None is this machine's own RAM with the tables CPU 0 has loaded. ``access``
        and ``privilege`` ask for a right as well. Raises UserMistake.
        """
        addresses = [va] if isinstance(va, int) else [int(each) for each in va]
        found = translate(self, addresses, memory, registers, access, privilege, space)
        return found[0] if isinstance(va, int) else found


def compare(
    workload: Workload | str | Path, machines: Iterable[str | Path], *, ignore_mm_calls: bool = False
) -> list[Report]:
    """One workload on several machines, each built afresh."""
    if not isinstance(workload, Workload):
        workload = open_workload(workload)
    return [Machine.from_file(each).run(workload, ignore_mm_calls=ignore_mm_calls) for each in machines]
