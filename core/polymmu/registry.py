"""From an installed plugin to ``ArchOps``: registration, checking, and one plain function per hook.

A pluggy call costs some thirty plain calls, so hooks are how an architecture is specified and registered;
when a machine is built each hook is already a bare function. Small adapters are generated where an
implementation takes fewer arguments than the spec, and where its answer can be checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, SimpleNamespace
from typing import Any, cast

import attrs
import numpy as np
import pluggy

from polymmu import defaults, hooks, plugins
from polymmu.errors import PluginMistake, PolymmuError, UserMistake
from polymmu.hardware.entry import EntryFormat
from polymmu.hardware.layout import RadixLayout
from polymmu.hooks import ArchOps
from polymmu.structs import AddressLimits, FaultInfo, mm_struct

__all__ = ["Arch", "arch_named", "blame", "installed_arches", "loaded_arches", "replaced", "resolve"]

GROUP = "polymmu.arch"
HOOKS: tuple[str, ...] = tuple(name for names in hooks.GROUPS.values() for name in names)


class Resolved:
    """One bare function per hook; frozen once resolved."""

    __slots__ = HOOKS

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        for name in HOOKS:
            object.__setattr__(self, name, functions[name])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"ArchOps is frozen; cannot set {name}")


@attrs.frozen(eq=False)
class Arch:
    """A resolved architecture: its ``ops``, and who it is (``distribution``, ``version``)."""

    name: str
    distribution: str
    version: str
    ops: ArchOps
    implementations: Mapping[str, Callable[..., Any]]
    """The plugin's own functions by hook name; hooks answered by the defaults are not in it."""


def installed_arches() -> dict[str, plugins.Installed]:
    """Installed architectures by name, sorted; nothing is imported."""
    return plugins.installed(GROUP)


def arch_named(name: str) -> Arch:
    """The installed architecture called ``name``. Raises UserMistake or PluginMistake."""
    known = installed_arches()
    row = known.get(name)
    if row is None:
        raise UserMistake(f"unknown architecture '{name}'{plugins.suggestion(name, list(known))}")
    return _load(row)


def _load(row: plugins.Installed) -> Arch:
    arch = _loaded.get(row.name)
    if arch is None:
        plugin = plugins.load(row)
        arch = _loaded[row.name] = resolve(
            row.name, plugin, distribution=row.distribution, version=row.version
        )
    return arch


_loaded: dict[str, Arch] = {}
"""Resolved once per process: every machine of an arch shares its ``ops``."""


def loaded_arches() -> tuple[Arch, ...]:
    """The architectures resolved so far, in order of name."""
    return tuple(_loaded[name] for name in sorted(_loaded))


def resolve(
    name: str,
    plugin: object,
    *,
    distribution: str = "?",
    version: str = "?",
    wrappers: Sequence[object] = (),
) -> Arch:
    """Check a plugin against the contract and resolve every hook to one function.

    ``wrappers``: further plugins whose hooks may only be wrappers. Raises PluginMistake for an unknown hook,
    a wrong signature, a second implementation, or a hook that has no default and is missing.
    """
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(ArchOps)
    try:
        for each in (plugin, *wrappers):
            manager.register(each)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginMistake(name, "registration", str(error).replace("\n", " ").strip()) from error
    functions: dict[str, Callable[..., Any]] = {}
    own: dict[str, Callable[..., Any]] = {}
    missing = []
    for hook in HOOKS:
        caller = getattr(manager.hook, hook)
        impls = caller.get_hookimpls()
        plain = [impl for impl in impls if not (impl.wrapper or impl.hookwrapper)]
        if len(plain) > 1:
            raise PluginMistake(name, hook, "has two implementations; only wrappers may be added")
        default = getattr(defaults, hook, None)
        if plain:
            own[hook] = plain[0].function
        elif default is None:
            missing.append(hook)
            continue
        if len(impls) > len(plain):
            if not plain:
                manager.register(SimpleNamespace(**{hook: hooks.hookimpl(default)}), name=f"default {hook}")
            functions[hook] = _through_pluggy(hook, caller)
        elif plain:
            functions[hook] = _adapter(name, hook, plain[0].function, plain[0].argnames)
        elif default is not None:
            functions[hook] = _narrow(hook, default, tuple(inspect.signature(default).parameters))
    if not own:
        raise PluginMistake(name, "registration", "implements no hook; mark functions with @hookimpl")
    if missing:
        raise PluginMistake(name, missing[0], f"must be implemented (missing: {', '.join(missing)})")
    return Arch(name, distribution, version, cast(ArchOps, Resolved(functions)), own)


def replaced(arch: Arch, hook: str, function: Callable[..., Any]) -> Arch:
    """``arch`` with ``hook`` answered by ``function`` instead; its answers are checked as a plugin's are.

    For tests that break or watch one hook; the arch itself is not changed.
    """
    taken = tuple(inspect.signature(function).parameters)
    functions = {name: getattr(arch.ops, name) for name in HOOKS}
    functions[hook] = _adapter(arch.name, hook, function, taken)
    return attrs.evolve(arch, ops=cast(ArchOps, Resolved(functions)))


def _spec_arguments(hook: str) -> tuple[str, ...]:
    return tuple(inspect.signature(getattr(ArchOps, hook)).parameters)[1:]


def _through_pluggy(hook: str, caller: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapped hook: the only case where pluggy itself makes the call."""
    names = _spec_arguments(hook)
    source = f"lambda {', '.join(names)}: call({', '.join(f'{n}={n}' for n in names)})"
    return cast("Callable[..., Any]", eval(source, {"call": caller}))


def _narrow(hook: str, function: Callable[..., Any], taken: Sequence[str]) -> Callable[..., Any]:
    """``function`` behind the spec's arguments; itself where it takes them all."""
    if tuple(taken) == _spec_arguments(hook):
        return function
    source = f"lambda {', '.join(_spec_arguments(hook))}: function({', '.join(taken)})"
    return cast("Callable[..., Any]", eval(source, {"function": function}))


def _adapter(
    plugin: str, hook: str, function: Callable[..., Any], taken: Sequence[str]
) -> Callable[..., Any]:
    """The function itself where nothing has to be adapted or checked."""
    names = _spec_arguments(hook)
    promise = PROMISES.get(hook)
    if promise is None:
        return _narrow(hook, function, taken)
    keeps, wanted = promise

    def broken(answer: object) -> PluginMistake:
        return PluginMistake(plugin, hook, f"answered {answer!r:.80}; {wanted}")

    source = (
        f"def checked({', '.join(names)}):\n"
        f"    answer = function({', '.join(taken)})\n"
        f"    if keeps(answer{''.join(', ' + n for n in names)}):\n"
        f"        return answer\n"
        f"    raise broken(answer)\n"
    )
    scope: dict[str, Any] = {"function": function, "keeps": keeps, "broken": broken}
    exec(source, scope)
    return cast("Callable[..., Any]", scope["checked"])


# ------------------------------------------------ what an answer must look like
def _is_int(answer: object, *_: object) -> bool:
    return type(answer) is int and answer >= 0


def _is_bool(answer: object, *_: object) -> bool:
    return isinstance(answer, bool)


def _within(answer: object, addr: int, end: int) -> bool:
    word = defaults.WORD
    return isinstance(answer, int) and (addr - 1 & word if addr else -1) < (answer - 1 & word) <= (
        end - 1 & word
    )


def _is_table(answer: object, mm: mm_struct, *_: object) -> bool:
    return type(answer) is int and (answer == -1 or 0 < answer < mm.kernel.ram.size)


def _is_entry(answer: object, mm: mm_struct, *_: object) -> bool:
    return type(answer) is int and -1 <= answer < mm.kernel.ram.size


def _of(kind: type) -> Callable[..., bool]:
    return lambda answer, *_: isinstance(answer, kind)


def _is_run(answer: object, mm: object, addr: int, ptep: int, n: int, *_: object) -> bool:
    return isinstance(answer, np.ndarray) and answer.dtype == np.uint64 and answer.shape == (n,)


PROMISES: dict[str, tuple[Callable[..., bool], str]] = {
    "config_class": (lambda a: isinstance(a, type) and attrs.has(a), "an attrs class is wanted"),
    "summary": (_of(str), "a string is wanted"),
    "boot_registers": (
        lambda a, *_: isinstance(a, dict) and all(isinstance(k, str) and _is_int(v) for k, v in a.items()),
        "a dict of register name to int is wanted",
    ),
    "page_table_layout": (_of(RadixLayout), "a RadixLayout is wanted"),
    "entry_format": (_of(EntryFormat), "an EntryFormat is wanted"),
    "translation": (lambda a, *_: a is not None, "a translation is wanted"),
    "root_of": (_is_int, "a physical address is wanted"),
    "address_limits": (_of(AddressLimits), "AddressLimits are wanted"),
    "huge_page_sizes": (
        lambda a, *_: isinstance(a, tuple) and all(_is_int(n) and n & (n - 1) == 0 for n in a),
        "a tuple of powers of two is wanted",
    ),
    "deviations": (
        lambda a, *_: isinstance(a, tuple) and set(a) <= {"tables_freed_early", "pages_freed_early"},
        "a tuple of 'tables_freed_early', 'pages_freed_early' or neither is wanted",
    ),
    "memory_model": (lambda a, *_: a in ("tso", "weak"), "'tso' or 'weak' is wanted"),
    "byte_order": (lambda a, *_: a in ("little", "big"), "'little' or 'big' is wanted"),
    "page_protections": (
        lambda a, *_: isinstance(a, tuple) and len(a) == 16 and all(_is_int(n) for n in a),
        "a tuple of 16 ints is wanted",
    ),
    "pgd_addr_end": (lambda a, mm, addr, end: _within(a, addr, end), "an address in (addr, end] is wanted"),
    "addr_end": (
        lambda a, mm, level, addr, end: _within(a, addr, end),
        "an address in (addr, end] is wanted",
    ),
    "is_hugepage_only_range": (_is_bool, "True or False is wanted"),
    "huge_entry_format": (lambda a, *_: a is None or isinstance(a, EntryFormat), "an EntryFormat is wanted"),
    "huge_protections": (
        lambda a, *_: a is None or (isinstance(a, tuple) and len(a) == 16 and all(_is_int(n) for n in a)),
        "a tuple of 16 ints is wanted",
    ),
    "huge_pte_alloc": (_is_entry, "the physical address of an entry, or -1, is wanted"),
    "huge_pte_offset": (_is_entry, "the physical address of an entry, or -1, is wanted"),
    "huge_ptep_get_and_clear": (_is_int, "the value of an entry is wanted"),
    "have_move_pmd": (_is_bool, "True or False is wanted"),
    "grow_task_size": (_is_bool, "True or False is wanted"),
    "pgd_alloc": (_is_table, "the physical address of a table, or -1, is wanted"),
    "table_alloc": (_is_table, "the physical address of a table, or -1, is wanted"),
    "tables_need_rcu": (_is_bool, "True or False is wanted"),
    "ptep_get_and_clear": (_is_run, "an array of n uint64 is wanted"),
    "ptep_clear_flush": (_is_run, "an array of n uint64 is wanted"),
    "set_access_flags": (_is_bool, "True or False is wanted"),
    "test_and_clear_young": (_is_int, "a count is wanted"),
    "page_test_and_clear_dirty": (_is_bool, "True or False is wanted"),
    "gup_fast_begin": (_is_bool, "True or False is wanted"),
    "decode_fault": (_of(FaultInfo), "a FaultInfo is wanted"),
}


def blame(error: BaseException, arch: Arch) -> PluginMistake | None:
    """Which hook of ``arch`` an unexpected exception came out of; None if it was not inside one.

    Costs nothing while nothing goes wrong: only the traceback is read.
    """
    if isinstance(error, PolymmuError):
        return None
    code_of = {
        inspect.unwrap(f).__code__: hook for hook, f in arch.implementations.items() if hasattr(f, "__code__")
    }
    found: str | None = None
    trace = error.__traceback__
    while trace is not None:
        frame: FrameType = trace.tb_frame
        found = code_of.get(frame.f_code, found)
        trace = trace.tb_next
    if found is None:
        return None
    text = str(error).splitlines()[0] if str(error) else ""
    return PluginMistake(arch.name, found, f"raised {type(error).__name__}{': ' + text if text else ''}")
