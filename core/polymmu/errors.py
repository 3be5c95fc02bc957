"""The kinds of failure a user can meet, told apart once, here.

A user's mistake is told in one line with place, value and way out; the command line turns it into
exit status 2. A system call that the emulated kernel refuses is an ``OSError`` with the errno that
Linux would give. Anything else that escapes is our own fault: exit status 3, with a traceback.
"""

from __future__ import annotations

import errno as _errno
import os

__all__ = [
    "InvalidArgument",
    "PluginMistake",
    "PolymmuError",
    "SegmentationFault",
    "SyscallError",
    "UserMistake",
    "syscall_error",
]


class PolymmuError(Exception):
    """Base of every exception this project raises on purpose."""


class UserMistake(PolymmuError, ValueError):
    """Wrong input: a file, an argument, a name. The text is one line: place, value, way out."""

    def __init__(self, message: str, *, place: str = "") -> None:
        super().__init__(f"{place}: {message}" if place else message)
        self.place = place
        self.reason = message


class PluginMistake(UserMistake):
    """A plugin raised, or answered a hook with something the contract does not allow."""

    def __init__(self, plugin: str, hook: str, message: str) -> None:
        super().__init__(f"hook {hook}: {message}", place=f"plugin '{plugin}'")
        self.plugin = plugin
        self.hook = hook


class SegmentationFault(PolymmuError):
    """An access the emulated kernel refuses.

    ``va`` is the faulting virtual address, ``access`` one of ``load``, ``store``, ``fetch``,
    ``reason`` a short sentence ("no mapping here", "mapping is not writable", ...). ``index``: the access of a
    replay that failed, counted in the arrays that were given; None outside a replay.
    """

    index: int | None = None

    def __init__(self, va: int, access: str, reason: str) -> None:
        super().__init__(f"segmentation fault: {access} at {va:#x}: {reason}")
        self.va = va
        self.access = access
        self.reason = reason


class SyscallError(PolymmuError, OSError):
    """A memory system call that failed; ``errno`` is Linux's."""

    def __init__(self, number: int, reason: str) -> None:
        OSError.__init__(self, number, f"{os.strerror(number)}: {reason}")
        self.reason = reason


class InvalidArgument(SyscallError, ValueError):
    """``EINVAL``: the arguments themselves make no sense (misaligned, empty, beyond the top)."""

    def __init__(self, reason: str) -> None:
        super().__init__(_errno.EINVAL, reason)


def syscall_error(number: int, reason: str) -> SyscallError:
    """The exception for errno ``number``; ``EINVAL`` is also a ``ValueError``."""
    return InvalidArgument(reason) if number == _errno.EINVAL else SyscallError(number, reason)
