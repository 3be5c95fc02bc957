"""Who decides what happens next under the exploring driver, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from polymmu.sched.access import Access

__all__ = ["Diverged", "Halt", "InFront", "Known", "Picker", "TooLong"]


class Halt(Exception):
    """A picker ends the execution here."""


class TooLong(Halt):
    """The execution has more steps than it may: perhaps somebody tries again for ever."""


class Diverged(Exception):
    """The program did not do what it did before; the message says at which step."""


class Known(Protocol):
    """A step of the execution before that comes again: whose turn, what he does, and how his choice comes out."""

    @property
    def chosen(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def value(self) -> int: ...


class Picker:
    """Who decides. Tasks are named by small numbers, the same for the same task in every execution.

    Whoever does not care what happens leaves all but ``pick`` and ``choose`` as they are.
    """

    def comes_again(self) -> Sequence[Known]:
        """An execution begins: its first steps that are known. Nothing is asked or told of them."""
        return ()

    def spawned(self, task: int) -> None:
        """``task`` exists from now on; the operation that happened last made it, if there was any."""

    def pick(self, current: int, able: Sequence[int]) -> int:
        """Which of ``able`` (never empty) goes on; ``current`` did the last operation. May raise Halt."""
        raise NotImplementedError

    def choose(self, options: int) -> int:
        """The outcome of the operation that was just picked, below ``options``."""
        raise NotImplementedError

    def happened(self, task: int, kind: str, what: object, accesses: Sequence[Access]) -> None:
        """The picked operation is over; all that it did to shared objects."""

    def stuck(self, blocked: Sequence[tuple[int, Sequence[Access]]]) -> None:
        """Nobody can go on: what each blocked task would do."""


class InFront(Picker):
    """A picker in front of another one, to see what it does; here it only passes on."""

    def __init__(self, picker: Picker) -> None:
        self._picker = picker

    def spawned(self, task: int) -> None:
        """See ``Picker``."""
        self._picker.spawned(task)

    def pick(self, current: int, able: Sequence[int]) -> int:
        """See ``Picker``."""
        return self._picker.pick(current, able)

    def choose(self, options: int) -> int:
        """See ``Picker``."""
        return self._picker.choose(options)

    def happened(self, task: int, kind: str, what: object, accesses: Sequence[Access]) -> None:
        """See ``Picker``."""
        self._picker.happened(task, kind, what, accesses)

    def stuck(self, blocked: Sequence[tuple[int, Sequence[Access]]]) -> None:
        """See ``Picker``."""
        self._picker.stuck(blocked)
