"""How far a search came, in a file: to go on from there after Ctrl-C or a limit.

The file is written beside its place and moved there, so that it is whole at any time. It says what it belongs to; a
search of anything else refuses it. It goes away once there is nothing left to go on with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polymmu.description.load import sha256_of
from polymmu.errors import UserMistake
from polymmu.exploration.replay_file import versions
from polymmu.exploration.scenario import Explored
from polymmu.exploration.verdict import Limits

__all__ = ["Checkpoint", "identity"]

VERSION = 1


def identity(program: Explored, strategy: str, seed: int, limits: Limits) -> dict[str, Any]:
    """All that must be the same for a search to be gone on with."""
    return {
        "scenario": program.file.scenario.name,
        "scenario_sha256": program.file.sha256,
        "machine": program.machine.name,
        "machine_sha256": sha256_of(program.machine.description),
        "variant": program.variant,
        "speculate": program.speculate,
        "memory_model": program.memory_model,
        "strategy": strategy,
        "seed": seed,
        "random": limits.random,
        "steps": limits.steps,
        "versions": versions(),
    }


class Checkpoint:
    """The file at ``path`` of the search that ``identity`` tells of."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path = path
        self._identity = identity

    def read(self) -> dict[str, Any] | None:
        """What was written last; None if there is no file. Raises UserMistake where it is another search's."""
        place = str(self._path)
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserMistake(f"cannot be read: {error.strerror}", place=place) from None
        except ValueError:
            data = None
        if not isinstance(data, dict) or data.get("polymmu_search") != VERSION:
            raise UserMistake(
                "holds no interrupted search of this version; name another file to begin anew", place=place
            )
        for name, here in self._identity.items():
            if data.get(name) != here:
                raise UserMistake(
                    f"is of another search: its {name} is {data.get(name)!r}, here it is {here!r}; "
                    "give what was given then, or another file to begin anew",
                    place=place,
                )
        state = data.get("state")
        if not isinstance(state, dict):
            raise UserMistake("is damaged; name another file to begin anew", place=place)
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Put ``state`` in place of what is there."""
        data = {"polymmu_search": VERSION, **self._identity, "state": state}
        beside = self._path.with_name(self._path.name + ".part")
        try:
            beside.write_text(json.dumps(data) + "\n", encoding="utf-8")
            beside.replace(self._path)
        except OSError as error:
            raise UserMistake(
                f"cannot write: {error.strerror}; choose another place", place=str(self._path)
            ) from error

    def remove(self) -> None:
        """There is nothing left to go on with."""
        self._path.unlink(missing_ok=True)
