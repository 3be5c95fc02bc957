"""The seam where other formats come in: hooks that a workload plugin implements, and how plugins are found.

A plugin is a module (or object) named by an entry point in the group ``polymmu.plugin``. It marks functions
with ``hookimpl`` and may implement either hook below. Entry points arrive in file-system order, so they are
sorted by name; two distributions that offer one name are refused rather than ranked.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pluggy

from polymmu.errors import PluginMistake, UserMistake
from polymmu.plugins import installed, load
from polymmu.workload.model import Workload

__all__ = ["GROUP", "ask_readers", "ask_recorders", "hookimpl", "installed_plugins"]

GROUP = "polymmu.plugin"

# A project name of its own: plugins of the same group may serve other seams with other specs.
hookspec = pluggy.HookspecMarker("polymmu_workload")
hookimpl = pluggy.HookimplMarker("polymmu_workload")


class WorkloadSpec:
    """What a workload plugin may answer."""

    @hookspec
    def read_workload(self, path: Path, head: bytes) -> Workload | None:
        """Called once per file that is not of a built-in format, plugins in order of their names.

        ``head`` is the beginning of the decompressed content (at most 64 KiB). Return None at once if the
        file is not of your format; decide by ``head``, not by the suffix. Once you return a workload nobody
        else is asked. For a file of your format that is broken raise ``UserMistake`` with the place.

        If a plugin claims too much, formats of plugins behind it in the alphabet cannot be read.
        """
        raise NotImplementedError

    @hookspec
    def record_workload(self, out: Path, argv: Sequence[str]) -> Mapping[str, Any] | None:
        """Called by ``polymmu record``: run ``argv`` and write what it did to ``out`` as an npz trace.

        The program keeps its own stdin, stdout and stderr. Return what was recorded (the trace's ``meta``),
        or None if this plugin records nothing. A missing tool or program is a ``UserMistake``. On
        KeyboardInterrupt keep what there is and note ``"partial": true``.

        If ``out`` is written before the program is known to exist, a mistyped name destroys an old recording.
        """
        raise NotImplementedError


@functools.cache
def installed_plugins() -> tuple[tuple[str, object], ...]:
    """Every installed plugin of the group, as (name, module), sorted by name.

    Raises ``UserMistake`` for a name that two distributions claim, ``PluginMistake`` for one that does not
    import.
    """
    return tuple((name, load(row)) for name, row in installed(GROUP).items())


def _one_line(error: BaseException) -> str:
    text = str(error).splitlines()
    return f"raised {type(error).__name__}" + (f": {text[0]}" if text else "")


def _implementations(hook: str, plugins: Sequence[tuple[str, object]]) -> list[pluggy.HookImpl]:
    """The plugins' functions for ``hook``, in the order of ``plugins``; unknown arguments are refused."""
    manager = pluggy.PluginManager("polymmu_workload")
    manager.add_hookspecs(WorkloadSpec)
    for name, plugin in plugins:
        try:
            manager.register(plugin, name=name)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginMistake(name, hook, " ".join(str(error).split())) from None
    by_name = {impl.plugin_name: impl for impl in getattr(manager.hook, hook).get_hookimpls()}
    return [by_name[name] for name, _ in plugins if name in by_name]


def _ask(
    hook: str,
    expected: type[Any],
    plugins: Sequence[tuple[str, object]] | None,
    arguments: Mapping[str, object],
) -> Any:
    for impl in _implementations(hook, installed_plugins() if plugins is None else plugins):
        try:
            answer = impl.function(*[arguments[name] for name in impl.argnames])
        except UserMistake:
            raise
        except Exception as error:  # a third party's code: named, so that the user knows whom to tell
            raise PluginMistake(impl.plugin_name, hook, _one_line(error)) from error
        if answer is None:
            continue
        if not isinstance(answer, expected):
            raise PluginMistake(
                impl.plugin_name, hook, f"returned {type(answer).__name__}, not {expected.__name__} or None"
            )
        return answer
    return None


def ask_readers(
    path: Path, head: bytes, plugins: Sequence[tuple[str, object]] | None = None
) -> Workload | None:
    """The first plugin's answer to ``read_workload``; None if the file is nobody's."""
    answer: Workload | None = _ask("read_workload", Workload, plugins, {"path": path, "head": head})
    return answer


def ask_recorders(
    out: Path, argv: Sequence[str], plugins: Sequence[tuple[str, object]] | None = None
) -> Mapping[str, Any] | None:
    """The first plugin's answer to ``record_workload``; None if none of them records."""
    answer: Mapping[str, Any] | None = _ask("record_workload", Mapping, plugins, {"out": out, "argv": argv})
    return answer
