"""The ways to break a hook: left out, doing nothing, and done wrong.

A breakage makes a hook's function from the one the arch gives. It knows the contract, no architecture. What may pass
unnoticed, and why, is in ``survivors``.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import attrs

from polymmu import defaults
from polymmu.hardware import state as at
from polymmu.hardware.entry import Access, Field, Privilege, WalkFault
from polymmu.hooks import GROUPS
from polymmu.registry import Arch
from polymmu.structs import VM_SHARED, VM_WRITE, mm_struct

__all__ = ["Breakage", "breakages_of", "is_empty"]

Hook = Callable[..., Any]


@attrs.frozen
class Breakage:
    """One way to break ``hook``: ``make`` takes the arch's function and gives the broken one."""

    hook: str
    text: str
    make: Callable[[Hook], Hook]


def breakages_of(arch: Arch) -> Iterator[Breakage]:
    """Every breakage of every hook that ``arch`` implements, in the order of the contract."""
    for hook in sorted(arch.implementations, key=list(vars(type(arch.ops))["__slots__"]).index):
        default = getattr(defaults, hook, None)
        if default is not None:
            yield Breakage(hook, "left out", left_out(hook, default))
        for text, make in WRONG.get(hook, ()):
            if not (text == NOTHING and default is not None and is_empty(default)):  # that is leaving it out
                yield Breakage(hook, text, make)


def is_empty(function: Hook) -> bool:
    """Whether a function's body is a docstring and nothing else."""
    if not isinstance(function, FunctionType):
        return False
    names = {each.opname for each in dis.get_instructions(function)}
    return names <= {"RESUME", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "NOP"} and not any(
        each.opname in ("LOAD_CONST", "RETURN_CONST") and each.argval is not None
        for each in dis.get_instructions(function)
    )


# ------------------------------------------------------------------ makers
def left_out(hook: str, default: Hook) -> Callable[[Hook], Hook]:
    """The default answers. Where a hook only describes, whether that is another answer is noted."""
    if hook not in DESCRIBES:
        return lambda original: default
    taken = inspect.signature(default).parameters

    def make(original: Hook) -> Hook:
        names = inspect.signature(original).parameters
        return changed_by(
            lambda right, *args: default(
                *(arg for name, arg in zip(names, args, strict=True) if name in taken)
            )
        )(original)

    return make


DESCRIBES = (*GROUPS["shape"], "huge_entry_format", "huge_protections")

NOTHING = "does nothing"


def nothing(original: Hook) -> Hook:
    """Accepts the call and does nothing."""
    return original_shape(lambda *args: None, original)


def original_shape(function: Hook, original: Hook) -> Hook:
    """``function`` with the parameters of ``original``: that is what the registry looks at."""
    vars(function)["__signature__"] = inspect.signature(original)
    return function


def answers(value: Any) -> Callable[[Hook], Hook]:
    """Whatever is asked, the same answer."""
    return lambda original: original_shape(lambda *args: value, original)


def changed(change: Callable[[Any], Any]) -> Callable[[Hook], Hook]:
    """The right answer, changed."""
    return changed_by(lambda right, *args: change(right))


def changed_by(change: Callable[..., Any]) -> Callable[[Hook], Hook]:
    """The right answer, changed. The function notes as ``took_effect`` whether that ever made a difference."""

    def make(original: Hook) -> Hook:
        def broken(*args: Any) -> Any:
            right = original(*args)
            wrong = change(right, *args)
            vars(broken)["took_effect"] |= wrong != right
            return wrong

        vars(broken)["took_effect"] = False
        return original_shape(broken, original)

    return make


def called(call: Callable[..., Any]) -> Callable[[Hook], Hook]:
    """``call(original, *arguments)`` in place of ``original(*arguments)``."""
    return lambda original: original_shape(lambda *args: call(original, *args), original)


@contextmanager
def alone(mm: mm_struct) -> Iterator[None]:
    """While it lasts the machine has only the CPU that is at work, and the mm has run on no other."""
    kernel, sched = mm.kernel, mm.kernel.sched
    cpus, here, mask = kernel.cpus, sched.cpu, mm.cpu_mask
    kernel.cpus = sched.cpus = (here,)
    mm.cpu_mask &= 1 << here.index
    try:
        yield
    finally:
        kernel.cpus = sched.cpus = cpus
        mm.cpu_mask |= mask


def here_only(mm_of: Callable[[Any], mm_struct]) -> Callable[[Hook], Hook]:
    """The hook acts on the CPU that calls it, the others are forgotten."""

    def call(original: Hook, what: Any, *args: Any) -> Any:
        with alone(mm_of(what)):
            return original(what, *args)

    return called(call)


# ------------------------------------------------------------------ done wrong, hook by hook
class Proxy:
    """A translation that differs from ``real`` in one method."""

    def __init__(self, real: Any, **methods: Any) -> None:
        vars(self).update(methods)
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def off_by_a_page(translation: Any) -> Proxy:
    def walk(*args: Any) -> Any:
        found = translation.walk(*args)
        return found if found.pa is None else attrs.evolve(found, pa=found.pa ^ 1 << translation.page_shift)

    return Proxy(translation, walk=walk)


def without_codes(translation: Any) -> Proxy:
    kinds = len(WalkFault) * len(Access) * len(Privilege)

    def install(words: Any) -> None:
        translation.install(words)
        words[at.CODES : at.CODES + kinds] = 0

    return Proxy(translation, install=install)


def moved_bit(layout: Any) -> Any:
    bits = layout.index_bits
    return attrs.evolve(layout, index_bits=(*bits[:-2], bits[-2] + 1, bits[-1] - 1))


def reach_too_far(limits: Any) -> Any:
    top = min(2 * limits.task_size, (1 << 64) - (1 << 16))
    return attrs.evolve(limits, task_size=top, mm_vm_size=top)


def private_writable(protections: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(protections[n | VM_SHARED] if n & VM_WRITE else bits for n, bits in enumerate(protections))


def too_far(original: Hook, mm: mm_struct, *args: int) -> int:
    *level, _, end = args
    stop: int = original(mm, *args)
    return stop if stop == end else int(original(mm, *level, stop, end))


def garbage(original: Hook, mm: mm_struct, level: int, addr: int) -> int:
    table: int = original(mm, level, addr)
    if table >= 0:
        mm.kernel.ram.write(table, b"\xa5" * mm.layout.table_bytes_of(level))
    return table


def at_once(original: Hook, tlb: Any, *args: int) -> None:
    level, table = (tlb.mm.layout.pte_level, args[0]) if len(args) == 2 else args[:2]
    tlb.need_flush = True
    tlb.mm.kernel.ops.table_free(tlb.mm, level, table)


def first_page_only(original: Hook, tlb: Any) -> None:
    if not tlb.fullmm and tlb.end - tlb.start > tlb.mm.layout.page_size:
        tlb.end = tlb.start + tlb.mm.layout.page_size
    tlb.freed_tables = False
    original(tlb)


def puts_back(original: Hook, mm: mm_struct, addr: int, ptep: int, n: int, tlb: Any) -> Any:
    values = original(mm, addr, ptep, n, tlb)
    defaults.set_pte(mm, addr, ptep, values)
    return values


def forgets_dirty(original: Hook, mm: mm_struct, addr: int, ptep: int, n: int, tlb: Any) -> Any:
    values = original(mm, addr, ptep, n, tlb)
    dirty = mm.kernel.shape.pte.dirty
    return values if dirty is None else values & ~values.dtype.type(dirty.mask)


def puts_huge_back(original: Hook, mm: mm_struct, addr: int, ptep: int, size: int) -> int:
    value: int = original(mm, addr, ptep, size)
    mm.kernel.ops.set_huge_pte(mm, addr, ptep, value, size)
    return value


def keeps_what_is_cached(original: Hook, cpu: Any, prev: Any, following: mm_struct) -> None:
    cpus = following.kernel.cpus
    for each in cpus:
        vars(each)["invalidate"] = lambda **what: 0
    try:
        original(cpu, prev, following)
    finally:
        for each in cpus:
            del vars(each)["invalidate"]


def out_of_the_mask(original: Hook, cpu: Any, prev: Any, following: mm_struct) -> None:
    original(cpu, prev, following)
    following.cpu_mask &= ~(1 << cpu.index)


def one_for_all(original: Hook) -> Hook:
    """The first answer for each kernel, again and again: a root, or a context."""
    first: dict[int, Any] = {}

    def root(mm: mm_struct) -> int:
        if mm.kernel.serial <= 1:
            return int(original(mm))
        known = first.get(id(mm.kernel))
        if known is None or known[0] is not mm.kernel:
            first[id(mm.kernel)] = known = (mm.kernel, original(mm))
        return int(known[1])

    return root


def one_context_for_all(original: Hook) -> Hook:
    first: dict[int, Any] = {}

    def init_new_context(mm: mm_struct, like: mm_struct | None) -> None:
        original(mm, like)
        if mm.kernel.serial > 1:
            kernel, context = first.setdefault(id(mm.kernel), (mm.kernel, mm.context))
            if kernel is mm.kernel:
                mm.context = context

    return init_new_context


WRONG: dict[str, tuple[tuple[str, Callable[[Hook], Hook]], ...]] = {
    "boot_registers": (
        ("every register is 0", changed(lambda registers: dict.fromkeys(registers, 0))),
        ("no register has a value", answers({})),
    ),
    "page_table_layout": (("an index bit stands one level too high", changed(moved_bit)),),
    "entry_format": (
        (
            "the lowest bit of a frame is lost",
            changed(lambda form: attrs.evolve(form, frame_mask=form.frame_mask & form.frame_mask - 1)),
        ),
        ("everything looks writable", changed(lambda form: attrs.evolve(form, write=Field(0, 0)))),
        (
            "accessed and dirty are unknown",
            changed(lambda form: attrs.evolve(form, accessed=None, dirty=None)),
        ),
    ),
    "translation": (
        ("the plain walk is off by a page", changed(off_by_a_page)),
        ("no fault has a code", changed(without_codes)),
    ),
    "root_of": (("the page behind the root", changed(lambda root: root + (1 << 16))),),
    "address_limits": (
        ("task_size is twice too high", changed(reach_too_far)),
        ("the holes are forgotten", changed(lambda limits: attrs.evolve(limits, holes=()))),
    ),
    "huge_page_sizes": (("a size that the MMU lacks", changed(lambda sizes: (*sizes, 1 << 50))),),
    "byte_order": (("the other order", changed(lambda order: "big" if order == "little" else "little")),),
    "page_protections": (
        ("private pages are writable", changed(private_writable)),
        ("no rights are a read right", changed(lambda all: (all[1], *all[1:8], all[9], *all[9:]))),
    ),
    "pgd_addr_end": (
        ("goes to the end at once", called(lambda original, mm, addr, end: end)),
        ("goes one boundary too far", called(too_far)),
    ),
    "addr_end": (
        ("goes to the end at once", called(lambda original, mm, level, addr, end: end)),
        ("goes one boundary too far", called(too_far)),
    ),
    "grow_task_size": (("says so and grows nothing", answers(True)),),
    "is_hugepage_only_range": (("everything is for huge pages", answers(True)),),
    "prepare_hugepage_range": ((NOTHING, nothing),),
    "huge_pte_alloc": (("finds no memory", answers(-1)),),
    "huge_pte_offset": (("finds nothing", answers(-1)),),
    "set_huge_pte": ((NOTHING, nothing),),
    "huge_ptep_get_and_clear": (("leaves the entry", called(puts_huge_back)),),
    "hugetlb_free_pgd_range": ((NOTHING, nothing),),
    "pgd_alloc": (("one root for all", one_for_all),),
    "pgd_free": ((NOTHING, nothing),),
    "table_alloc": (("gives a table that is not empty", called(garbage)),),
    "table_free": ((NOTHING, nothing),),
    "populate": ((NOTHING, nothing),),
    "clear_entry": ((NOTHING, nothing),),
    "pte_map": ((NOTHING, nothing),),
    "pte_unmap": ((NOTHING, nothing),),
    "check_pgt_cache": ((NOTHING, nothing),),
    "tables_need_rcu": (("the opposite", changed(lambda answer: not answer)),),
    "tlb_gather": ((NOTHING, nothing),),
    "tlb_start_vma": ((NOTHING, nothing),),
    "tlb_end_vma": ((NOTHING, nothing),),
    "tlb_remove_tlb_entry": ((NOTHING, nothing),),
    "tlb_flush": (
        (NOTHING, nothing),
        ("this CPU only", here_only(lambda tlb: tlb.mm)),
        ("the first page only", called(first_page_only)),
    ),
    "pte_free_tlb": ((NOTHING, nothing), ("freed before the flush", called(at_once))),
    "table_free_tlb": ((NOTHING, nothing), ("freed before the flush", called(at_once))),
    "tlb_finish": ((NOTHING, nothing),),
    "flush_tlb_mm": ((NOTHING, nothing), ("this CPU only", here_only(lambda mm: mm))),
    "flush_tlb_range": (
        (NOTHING, nothing),
        ("this CPU only", here_only(lambda vma: vma.vm_mm)),
        (
            "the first page only",
            called(
                lambda original, vma, start, end: original(vma, start, start + vma.vm_mm.layout.page_size)
            ),
        ),
    ),
    "flush_tlb_page": (
        (NOTHING, nothing),
        ("this CPU only", here_only(lambda vma: vma.vm_mm)),
        (
            "the next page",
            called(lambda original, vma, addr: original(vma, addr + vma.vm_mm.layout.page_size)),
        ),
    ),
    "flush_tlb_pgtables": ((NOTHING, nothing),),
    "flush_cache_mm": ((NOTHING, nothing),),
    "flush_cache_range": ((NOTHING, nothing),),
    "set_pte": (
        (NOTHING, nothing),
        (
            "the first entry only",
            called(lambda original, mm, addr, ptep, values: original(mm, addr, ptep, values[:1])),
        ),
    ),
    "ptep_get_and_clear": (
        ("leaves the entries", called(puts_back)),
        ("forgets dirty", called(forgets_dirty)),
    ),
    "ptep_clear_flush": (
        (
            "clears and does not flush",
            called(
                lambda original, vma, addr, ptep, n: defaults.ptep_get_and_clear(
                    vma.vm_mm, addr, ptep, n, None
                )
            ),
        ),
    ),
    "set_wrprotect": (
        (NOTHING, nothing),
        ("the first entry only", called(lambda original, mm, addr, ptep, n: original(mm, addr, ptep, 1))),
    ),
    "set_access_flags": (("says so and stores nothing", answers(True)),),
    "update_mmu_cache": ((NOTHING, nothing),),
    "enter_lazy_mmu": ((NOTHING, nothing),),
    "leave_lazy_mmu": ((NOTHING, nothing),),
    "test_and_clear_young": (
        ("nothing is ever young", answers(0)),
        ("everything is always young", answers(1)),
    ),
    "page_test_and_clear_dirty": (
        ("nothing is ever dirty", answers(False)),
        ("everything is dirty", answers(True)),
    ),
    "init_new_context": ((NOTHING, nothing), ("one context for all", one_context_for_all)),
    "destroy_context": ((NOTHING, nothing),),
    "switch_mm": (
        (NOTHING, nothing),
        ("keeps what is cached", called(keeps_what_is_cached)),
        ("leaves the CPU out of the mask", called(out_of_the_mask)),
    ),
    "enter_lazy_tlb": ((NOTHING, nothing),),
    "decode_fault": (
        (
            "a store looks like a load",
            changed(
                lambda info: attrs.evolve(info, access="load" if info.access == "store" else info.access)
            ),
        ),
        (
            "every refusal looks like an absent page",
            changed(lambda info: attrs.evolve(info, kind="not_present")),
        ),
    ),
    "gup_fast_begin": ((NOTHING, nothing),),
    "gup_fast_end": ((NOTHING, nothing),),
}
