"""The names a user imports: a machine that can also run workloads, and comparisons.

``machine.Machine`` knows nothing of workloads; here the two are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self, overload

from polymmu import machine as _machine
from polymmu.description.load_scenario import ScenarioFile
from polymmu.errors import UserMistake
from polymmu.hardware.ram import Ram
from polymmu.images import Image
from polymmu.report import Report
from polymmu.translation import Translated, translate
from polymmu.workload.execute import execute
from polymmu.workload.model import Workload
from polymmu.workload.readers import open_any
from polymmu.workload.scenario import run_scenario

__all__ = ["Machine", "compare"]


class Machine(_machine.Machine):
    """A machine that runs workloads."""

    @classmethod
    def to_run(
        cls,
        name_or_path: str | Path,
        workload: Workload | ScenarioFile,
        *,
        sets: Sequence[str] = (),
        driver: str | None = None,
        sanitize: bool | None = None,
        variant: str | None = None,
    ) -> Self:
        """The machine called so, with what a scenario wants of it, and the driver that suits the workload.

        ``driver`` None: solo for a program with one thread, timed for several and for scenarios. ``sanitize`` None:
        only scenarios have the referee. ``variant``: of a scenario that has several; None: the fixed one. Raises
        UserMistake.
        """
        if isinstance(workload, ScenarioFile):
            over, is_scenario, several = workload.over_in(variant), True, True
        else:
            over, is_scenario, several = None, False, len({turn.tid for turn in workload.threads}) > 1
        return cls.from_file(
            name_or_path,
            sets=sets,
            driver=driver or ("timed" if several else "solo"),
            sanitize=is_scenario if sanitize is None else sanitize,
            over=over,
        )

    def run(
        self,
        workload: Workload | ScenarioFile | str | Path,
        *,
        ignore_mm_calls: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Run a workload or scenario (or the file that holds one) and report everything counted on this machine so far.

        Interrupted (Ctrl-C) it returns what it has, with ``"partial": true``. Raises UserMistake where the
        workload cannot be read, or does not fit this machine.
        """
        if isinstance(workload, str | Path):
            workload = open_any(workload)
        if isinstance(workload, ScenarioFile):
            if ignore_mm_calls:
                raise UserMistake(
                    "a scenario is made of mm calls; they cannot be ignored", place=workload.filename
                )
            return self.report(
                workload=workload.scenario.name,
                workload_sha256=workload.sha256,
                extra=run_scenario(self, workload).to_dict(),
            )
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
    workload: Workload | ScenarioFile | str | Path,
    machines: Iterable[str | Path],
    *,
    ignore_mm_calls: bool = False,
    driver: str | None = None,
) -> list[Report]:
    """One workload or scenario on several machines, each built afresh; ``driver`` as in ``Machine.to_run``."""
    if isinstance(workload, str | Path):
        workload = open_any(workload)
    return [
        Machine.to_run(each, workload, driver=driver).run(workload, ignore_mm_calls=ignore_mm_calls)
        for each in machines
    ]
