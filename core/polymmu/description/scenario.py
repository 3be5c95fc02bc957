"""What a scenario file may say: a setup, then what each CPU does; attrs classes, one per mapping of the file.

One file fits every architecture, so places are told in the machine's own units: ``16p`` is sixteen base pages,
``1pmd`` what one entry of a pmd table covers, ``1huge`` the smallest huge page, ``1pmd+3p`` and ``1pmd-1p`` more
and less than that. A step is a mapping with one key, the verb.

The keys ``machine`` and ``kernel`` are not here: they are laid over the machine that runs the scenario (``load``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field

from polymmu.description import rules
from polymmu.description.model import PART_NAME, doc
from polymmu.description.rules import ACCESSES

__all__ = ["CpuPlan", "Scenario", "Step", "bytes_of"]

MEMORY_MODELS = ("sc", "tso")
SPAN = r"(0|[1-9][0-9]{0,14})(pmd|p|huge)([+-](0|[1-9][0-9]{0,14})(pmd|p|huge))*"
SPAN_DOC = "a number of pages such as 16p, 1pmd, 1huge, 1pmd+3p or 1pmd-1p"


def bytes_of(span: str, units: Mapping[str, int]) -> int:
    """Bytes of a span; ``units``: those of p, pmd and huge. Raises KeyError for a unit that is not there."""
    return sum(int(number) * units[unit] for number, unit in _parts_of(span))


@functools.cache
def _parts_of(span: str) -> tuple[tuple[str, str], ...]:
    return tuple(re.findall(r"(-?[0-9]+)([a-z]+)", span))


def span(text: str, default: Any = attrs.NOTHING) -> Any:
    """A field that holds a place or a length."""
    return field(default=default, metadata=doc(text, pattern=SPAN, pattern_doc=SPAN_DOC))


def name_of(text: str, default: Any = attrs.NOTHING) -> Any:
    """A field that names an mm or a file; empty: none, or the task's own."""
    return field(
        default=default,
        metadata=doc(text, pattern=PART_NAME, pattern_doc="a name (letters, digits, - and _)"),
    )


def own_mm() -> Any:
    """The field ``mm`` of a step."""
    return name_of("whose address space; left out: the task's own", "")


def may_be_refused() -> Any:
    """The field ``may`` of a system call."""
    return field(default="", metadata=doc("what may come of it besides success", choices=("", "refused")))


def cycles_of(text: str) -> Any:
    """A field that holds cycles."""
    return field(metadata=doc(text, minimum=1, maximum=10**9))


@attrs.frozen(kw_only=True)
class NewFile:
    """A file of zeroes that steps can map and truncate."""

    name: str = name_of("what the other steps call it")
    length: str = span("its size")


@attrs.frozen(kw_only=True)
class NewDriver:
    """A device's file: mapping it maps the memory that its driver has."""

    name: str = name_of("what the other steps call it")
    length: str = span("how much memory the driver has")
    refuses: bool = field(default=False, metadata=doc("its mmap maps everything, and fails then (ENODEV)"))


@attrs.frozen(kw_only=True)
class Mmap:
    """Map memory at a fixed place."""

    mm: str = own_mm()
    at: str = span("where")
    length: str = span("how much")
    prot: str = field(
        default="rw", metadata=doc("letters of rwx", pattern="r?w?x?", pattern_doc="letters of rwx")
    )
    shared: bool = field(default=False, metadata=doc("shared, not private"))
    file: str = name_of("the file behind it; left out: anonymous", "")
    offset: str = span("where in the file it begins", "0p")
    populate: bool = field(default=False, metadata=doc("all its pages at once"))
    huge: int = field(
        default=0, metadata=doc("of huge pages of so many bytes; 0: of base pages", unit="size", minimum=0)
    )
    huge_pages: bool = field(default=False, metadata=doc("of the machine's smallest huge pages"))
    may: str = may_be_refused()


@attrs.frozen(kw_only=True)
class Range:
    """A range of an address space."""

    mm: str = own_mm()
    at: str = span("where")
    length: str = span("how much")


@attrs.frozen(kw_only=True)
class Mprotect(Range):
    """Change a range's rights."""

    prot: str = field(metadata=doc("letters of rwx", pattern="r?w?x?", pattern_doc="letters of rwx"))


@attrs.frozen(kw_only=True)
class Mremap(Range):
    """Resize or move a mapping."""

    new_length: str = span("how long it is to be")
    to: str = span("where it must go; left out: it stays where it is", "")
    may: str = may_be_refused()


@attrs.frozen(kw_only=True)
class Madvise(Range):
    """Say what a range is good for."""

    advice: str = field(default="dontneed", metadata=doc("what", choices=("dontneed",)))


@attrs.frozen(kw_only=True)
class RemapFilePages(Range):
    """Show other pages of the file in a part of a shared mapping."""

    offset: str = span("where in the file they begin")
    populate: bool = field(default=True, metadata=doc("bring them in at once"))


@attrs.frozen(kw_only=True)
class Invalidate:
    """A range of a file leaves every mapping, private copies excepted, and stays in the file: the next access asks for
    it again. Drivers and network file systems do so without i_mutex."""

    file: str = name_of("which file")
    at: str = span("where in it")
    length: str = span("how much")


@attrs.frozen(kw_only=True)
class Remove:
    """A device is pulled out: its memory leaves every mapping, and its driver gives it back."""

    driver: str = name_of("whose")


@attrs.frozen(kw_only=True)
class Brk:
    """Move the end of the heap."""

    mm: str = own_mm()
    length: str = span("how long the heap is to be")


@attrs.frozen(kw_only=True)
class Reclaim:
    """Free cold pages, as a kernel thread does when memory runs short."""

    pages: int = field(metadata=doc("how many", minimum=1, maximum=10**6))


@attrs.frozen(kw_only=True)
class Fork:
    """A child that shares every page copy-on-write."""

    mm: str = own_mm()
    child: str = name_of("what the other steps call the child's address space")


@attrs.frozen(kw_only=True)
class Exit:
    """Give an address space up; its last user takes it down. A task without one goes on as a kernel thread."""

    mm: str = own_mm()


@attrs.frozen(kw_only=True)
class ReadMaps:
    """Look at an address space's mappings, as /proc shows them: its reader is a user of it meanwhile."""

    mm: str = own_mm()


@attrs.frozen(kw_only=True)
class Access:
    """One access of one byte, by user code."""

    mm: str = own_mm()
    at: str = span("where")
    may: str = field(default="", metadata=doc("what may come of it besides success", choices=("", "segv")))


@attrs.frozen(kw_only=True)
class Touch(Range):
    """One access to every page of a range."""

    access: str = field(default="store", metadata=doc("which kind", choices=ACCESSES))
    may: str = field(default="", metadata=doc("what may come of it besides success", choices=("", "segv")))


@attrs.frozen(kw_only=True)
class Truncate:
    """Set a file's size; pages beyond it leave every mapping."""

    file: str = name_of("which file")
    length: str = span("its new size")


@attrs.frozen(kw_only=True)
class Sync:
    """Write out what was stored to a file through shared mappings (fsync)."""

    file: str = name_of("which file")


@attrs.frozen(kw_only=True)
class Punch:
    """Make some pages of a file zeroes; they leave every mapping and the cache."""

    file: str = name_of("which file")
    offset: str = span("where in the file")
    length: str = span("how much")


@attrs.frozen(kw_only=True)
class GupFast:
    """Take references to the pages of a range without a lock (get_user_pages_fast), and drop them."""

    mm: str = own_mm()
    at: str = span("where")
    length: str = span("how much", "1p")
    write: bool = field(default=False, metadata=doc("to write to them"))
    may: str = field(default="", metadata=doc("what may come of it besides success", choices=("", "segv")))


@attrs.frozen(kw_only=True)
class Attach:
    """Let a device use an address space beside the CPUs."""

    mm: str = own_mm()
    sleeps: bool = field(
        default=False, metadata=doc("it takes its time to stop, so it must not be asked below a spinlock")
    )


@attrs.frozen(kw_only=True)
class Device:
    """One access of one byte, by the device that was attached to the address space."""

    mm: str = own_mm()
    at: str = span("where")
    access: str = field(default="load", metadata=doc("which kind", choices=("load", "store")))
    may: str = field(default="", metadata=doc("what may come of it besides success", choices=("", "segv")))


@attrs.frozen(kw_only=True)
class Cycles:
    """A time."""

    cycles: int = cycles_of("how long")


@attrs.frozen(kw_only=True)
class Step:
    """One thing that a task does: exactly one of these keys."""

    mm: str = name_of("make an empty address space of this name (setup only)", "")
    file: NewFile | None = field(default=None, metadata=doc("make a file (setup only)"))
    driver: NewDriver | None = field(default=None, metadata=doc("make a device's file (setup only)"))
    mmap: Mmap | None = field(default=None, metadata=doc("map memory"))
    munmap: Range | None = field(default=None, metadata=doc("unmap a range"))
    mprotect: Mprotect | None = field(default=None, metadata=doc("change a range's rights"))
    mremap: Mremap | None = field(default=None, metadata=doc("resize or move a mapping"))
    madvise: Madvise | None = field(default=None, metadata=doc("drop the pages of a range"))
    remap_file_pages: RemapFilePages | None = field(
        default=None, metadata=doc("put the pages of a shared file mapping in another order")
    )
    invalidate: Invalidate | None = field(
        default=None, metadata=doc("take a range of a file out of every mapping")
    )
    remove: Remove | None = field(default=None, metadata=doc("pull a device out; its memory is free then"))
    swap_out: Range | None = field(default=None, metadata=doc("write a range's pages out and free them"))
    reclaim: Reclaim | None = field(default=None, metadata=doc("free cold pages, wherever they are mapped"))
    brk: Brk | None = field(default=None, metadata=doc("move the end of the heap"))
    fork: Fork | None = field(default=None, metadata=doc("make a child's address space"))
    exit: Exit | None = field(default=None, metadata=doc("give an address space up"))
    read_maps: ReadMaps | None = field(
        default=None, metadata=doc("look at the mappings, as /proc shows them")
    )
    load: Access | None = field(default=None, metadata=doc("read a byte"))
    store: Access | None = field(default=None, metadata=doc("write a byte"))
    fetch: Access | None = field(default=None, metadata=doc("fetch an instruction"))
    touch: Touch | None = field(default=None, metadata=doc("access every page of a range"))
    truncate: Truncate | None = field(default=None, metadata=doc("set a file's size"))
    punch: Punch | None = field(default=None, metadata=doc("make some pages of a file zeroes"))
    sync: Sync | None = field(default=None, metadata=doc("write out what was stored to a file"))
    gup_fast: GupFast | None = field(default=None, metadata=doc("look pages up without a lock"))
    poke: Access | None = field(
        default=None, metadata=doc("write a byte as a debugger does, also where the program may not")
    )
    attach: Attach | None = field(default=None, metadata=doc("let a device use an address space"))
    device: Device | None = field(default=None, metadata=doc("let the device access memory"))
    work: Cycles | None = field(default=None, metadata=doc("compute without memory"))
    sleep: Cycles | None = field(default=None, metadata=doc("sleep; other tasks may run on the CPU"))

    def __attrs_post_init__(self) -> None:
        verbs = self._verbs()
        if len(verbs) != 1:
            found = " and ".join(verbs) or "none"
            raise ValueError(f"a step does one thing; found {found} (known: {', '.join(self._all())})")

    @classmethod
    def _all(cls) -> list[str]:
        return [attribute.name for attribute in attrs.fields(cls)]

    def _verbs(self) -> list[str]:
        return [name for name in self._all() if getattr(self, name)]

    @functools.cached_property
    def verb(self) -> str:
        """Which key it has."""
        return self._verbs()[0]

    @functools.cached_property
    def what(self) -> Any:
        """That key's value."""
        return getattr(self, self.verb)


@attrs.frozen(kw_only=True)
class CpuPlan:
    """A task. Without an mm it is a kernel thread, which borrows the mm it finds loaded."""

    mm: str = name_of("its address space; left out: a kernel thread", "")
    do: tuple[Step, ...] = field(metadata=doc("what it does, in order", repeats=True))
    times: int = field(default=1, metadata=doc("how often it does all that", minimum=1, maximum=10**6))


@attrs.frozen(kw_only=True)
class Scenario:
    """A whole scenario file, checked."""

    scenario: int = field(default=1, metadata=doc("version of this format", choices=(1,)))
    name: str = field(
        metadata=doc(
            "name of the scenario", pattern=r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", pattern_doc="a name"
        )
    )
    summary: str = field(
        default="", metadata=doc("one line for `polymmu scenarios`"), validator=rules.check_line
    )
    setup: tuple[Step, ...] = field(
        default=(), metadata=doc("what is done on CPU 0 before the tasks start", repeats=True)
    )
    cpus: dict[str, CpuPlan] = field(
        metadata=doc(
            "tasks by CPU: 0, 1, ...; a letter behind the number tells several tasks of one CPU apart",
            names="(0|[1-9][0-9]?)[a-z]?",
            names_doc="a CPU's number, or one with a letter for another task there, such as 1b",
        )
    )
    corpus: str = field(
        default="",
        metadata=doc(
            "number of the known bug it shows",
            pattern="[1-9][0-9]*[a-z]?",
            pattern_doc="a number such as 16b",
        ),
    )
    invariant: str = field(
        default="",
        metadata=doc(
            "the rule that the bug breaks", pattern="INV-[A-Z]+", pattern_doc="a name such as INV-TLB"
        ),
    )
    arches: tuple[str, ...] = field(default=(), metadata=doc("architectures it applies to; none: all"))
    choices: dict[str, int] = field(
        factory=dict[str, int], metadata=doc("budgets of the explorer", minimum=0)
    )
    shootdown: bool = field(
        default=False,
        metadata=doc(
            "explore the words by which CPUs agree on flushes, too: masks, generations, what is loaded"
        ),
    )
    memory_model: str = field(
        default="sc",
        metadata=doc(
            "sc (sequential consistency), or tso (store buffers) for the explorer", choices=MEMORY_MODELS
        ),
    )
    expect: str = field(default="clean", metadata=doc("what must come of it", choices=("clean",)))

    def __attrs_post_init__(self) -> None:
        made = {step.mm for step in self.setup if step.verb == "mm"}
        for name, plan in self.cpus.items():
            if plan.mm and plan.mm not in made:
                raise ValueError(f"cpus.{name}.mm: no setup step makes an mm '{plan.mm}'")
            for step in plan.do:
                if step.verb in ("mm", "file", "driver"):
                    raise ValueError(f"cpus.{name}.do: '{step.verb}' belongs to the setup")
