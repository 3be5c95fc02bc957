"""Plugins that are broken, doubled or unknown are told in one line that names plugin, hook and way out."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from polymmu import plugins, registry
from polymmu.description.load import load_machine_text
from polymmu.errors import PluginMistake, PolymmuError, UserMistake
from polymmu.hooks import GROUPS, hookimpl
from polymmu.machine import Machine
from polymmu.registry import arch_named, blame, resolve

HOOKS = tuple(name for names in GROUPS.values() for name in names)
REQUIRED = ("page_table_layout", "entry_format", "translation", "root_of", "address_limits", "page_protections",
            "decode_fault", "boot_registers")  # fmt: skip


def own_hooks() -> dict[str, Callable[..., Any]]:
    """A complete plugin as a dict: x86_64's own functions."""
    return dict(arch_named("x86_64").implementations)


def plugin(**changes: Callable[..., Any] | None) -> SimpleNamespace:
    functions = own_hooks() | changes
    return SimpleNamespace(**{name: function for name, function in functions.items() if function is not None})


def test_unknown_hook_is_refused_by_name() -> None:
    with pytest.raises(PluginMistake, match="tlb_flsh"):
        resolve("toy", plugin(tlb_flsh=hookimpl(lambda tlb: None)))


def test_unknown_argument_is_refused() -> None:
    def tlb_flush(tlb: Any, surprise: int) -> None: ...

    with pytest.raises(PluginMistake, match="surprise"):
        resolve("toy", plugin(tlb_flush=hookimpl(tlb_flush)))


@pytest.mark.parametrize("hook", REQUIRED)
def test_hook_without_default_must_be_there(hook: str) -> None:
    with pytest.raises(PluginMistake, match=f"{hook}: must be implemented"):
        resolve("toy", plugin(**{hook: None}))


def test_module_without_any_hook_is_refused() -> None:
    with pytest.raises(PluginMistake, match="implements no hook"):
        resolve("toy", SimpleNamespace(x=1))


def test_hook_may_take_fewer_arguments() -> None:
    @hookimpl
    def summary() -> str:
        return "short"

    assert resolve("toy", plugin(summary=summary)).ops.summary() == "short"

    @hookimpl
    def tables_need_rcu() -> bool:
        return True

    assert resolve("toy", plugin(tables_need_rcu=tables_need_rcu)).ops.tables_need_rcu(None) is True  # type: ignore[arg-type]


def test_wrapper_is_called_around_the_only_implementation() -> None:
    seen = []

    @hookimpl(wrapper=True)
    def summary() -> Any:
        answer = yield
        seen.append(answer)
        return answer.upper()

    arch = resolve("toy", plugin(), wrappers=[SimpleNamespace(summary=summary)])
    assert arch.ops.summary() == "64-BIT X86: FOUR- AND FIVE-LEVEL PAGING, PCID"
    assert seen == ["64-bit x86: four- and five-level paging, PCID"]


def test_ops_are_frozen() -> None:
    with pytest.raises(AttributeError, match="frozen"):
        arch_named("x86_64").ops.tlb_flush = None  # type: ignore[method-assign, assignment]


def test_unknown_arch_says_what_is_known_and_what_was_meant() -> None:
    with pytest.raises(
        UserMistake, match=r"unknown architecture 'x86_46' \(known: .*x86, x86_64.*\); did you mean 'x86_64'"
    ):
        arch_named("x86_46")


def entry_point(name: str, value: str, distribution: str) -> EntryPoint:
    point = EntryPoint(name=name, value=value, group="polymmu.arch")
    vars(point).update(dist=SimpleNamespace(name=distribution, version="1.0"))
    return point


def test_two_distributions_with_one_name_are_refused_with_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [entry_point("toy", "b_toy", "b-dist"), entry_point("toy", "a_toy", "a-dist")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    with pytest.raises(UserMistake, match=r"registered twice, by a-dist 1.0 and by b-dist 1.0"):
        registry.installed_arches()


def test_installed_plugins_are_listed_by_name_whatever_order_they_came_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = [entry_point(name, name, name) for name in ("m68k", "alpha", "vax")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    assert list(registry.installed_arches()) == ["alpha", "m68k", "vax"]


def test_plugin_that_does_not_import_is_told_with_its_distribution() -> None:
    row = plugins.Installed(
        "toy", "toy-dist", "1.0", EntryPoint("toy", "no_such_module_at_all", "polymmu.arch")
    )
    with pytest.raises(PluginMistake, match=r"toy.*toy-dist 1.0.*ModuleNotFoundError"):
        plugins.load(row)


# ------------------------------------------------- what a machine says when a hook misbehaves
MACHINE = """
machine: 1
name: toy
arch: x86_64
cpus: 2
memory: 64 MiB
tlbs: {L1: {level: 1, page_sizes: [4 KiB], entries: 16, ways: 4}}
"""


def drive(arch: registry.Arch) -> None:
    """A small program that makes the core ask nearly every hook."""
    description = load_machine_text(
        MACHINE, filename="toy.yaml", section_class_of=lambda name: arch.ops.config_class()
    )
    machine = Machine(description, arch)
    page = machine.page_size
    mm = machine.new_mm()
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(64 * page)
    cpu.store(at, b"x" * (2 * page))
    cpu.load(at + 8 * page, 1)
    cpu.store(at + 8 * page, b"y")
    cpu.store(at + 5 * page, b"soon shared")
    mm.mprotect(at, 4 * page, "r")
    mm.mremap(at + 32 * page, 8 * page, 64 * page)
    child = mm.fork()
    cpu.store(at + 8 * page, b"z")
    machine.cpus[1].switch_mm(child)
    machine.cpus[1].load(at, 1)
    child.exit()
    cpu.store(at + 5 * page, b"mine alone again")
    far = mm.mmap(1024 * page, at=1 << 40)
    cpu.store(far, b"its tables go with it")
    mm.munmap(far, 1024 * page)
    mm.madvise(at, 4 * page, "dontneed")
    mm.munmap(at, 16 * page)
    mm.exit()


def outcome(arch_or_error: Callable[[], registry.Arch]) -> Exception | None:
    arch: registry.Arch | None = None
    try:
        arch = arch_or_error()
        drive(arch)
    except PolymmuError as error:
        return error
    except Exception as error:
        assert arch is not None
        return blame(error, arch)
    return None


class Boom(Exception):
    """What a broken plugin raises."""


def asked_hooks() -> set[str]:
    """The hooks that ``drive`` reaches, found by counting."""
    asked: set[str] = set()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            asked.add(name)
            return function(*args)

        return call

    real = arch_named("x86_64")
    functions = {name: counting(name, getattr(real.ops, name)) for name in HOOKS}
    drive(registry.Arch("toy", "toy-dist", "1", registry.Resolved(functions), {}))  # type: ignore[arg-type]
    return asked


def test_the_program_reaches_most_hooks() -> None:
    never = set(HOOKS) - asked_hooks()
    # Asked only by listings, explorations, translate, huge mappings, reclaim and lockless walkers: none is here.
    assert never <= {
        "summary", "memory_model", "root_of",
        "huge_pte_alloc", "prepare_hugepage_range", "hugetlb_free_pgd_range",
        "test_and_clear_young", "page_test_and_clear_dirty", "gup_fast_begin", "gup_fast_end",
        "enter_lazy_tlb", "flush_cache_mm", "config_class", "flush_cache_range", "flush_tlb_page",
        "read_image", "deviations", "grow_task_size", "huge_pte_offset", "set_huge_pte", "huge_ptep_get_and_clear",
    }  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_that_raises_is_named(hook: str) -> None:
    def broken(*args: Any) -> Any:
        raise Boom("out of cheese")

    scope: dict[str, Any] = {"broken": broken, "Boom": Boom}
    names = ", ".join(registry._spec_arguments(hook))
    exec(f"def {hook}({names}):\n    raise Boom('out of cheese')\n", scope)
    error = outcome(lambda: resolve("toy", plugin(**{hook: hookimpl(scope[hook])})))
    if hook in asked_hooks():
        assert isinstance(error, PluginMistake)
        assert (error.plugin, error.hook) == ("toy", hook)
        assert "Boom: out of cheese" in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize("nonsense", [None, "nonsense", -7, 1 << 70, 3.5], ids=str)
@pytest.mark.parametrize("hook", sorted(registry.PROMISES))
def test_hook_that_answers_nonsense_is_named(hook: str, nonsense: object) -> None:
    may_be_none = {"huge_entry_format", "huge_protections"}
    if (
        hook not in asked_hooks()
        or (hook == "translation" and nonsense is not None)
        or (hook in may_be_none and nonsense is None)
    ):
        pytest.skip("the program does not ask this hook, or cannot tell")
    names = ", ".join(registry._spec_arguments(hook))
    scope: dict[str, Any] = {"nonsense": nonsense}
    exec(f"def {hook}({names}):\n    return nonsense\n", scope)
    error = outcome(lambda: resolve("toy", plugin(**{hook: hookimpl(scope[hook])})))
    assert isinstance(error, UserMistake), f"{hook} answering {nonsense!r} went unnoticed"
    assert f"plugin 'toy': hook {hook}: answered" in str(error)
    assert "\n" not in str(error)
