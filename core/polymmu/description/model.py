"""What a machine file may say: attrs classes, one per mapping of the file.

The classes are the single source: the loader converts YAML into them, the JSON Schema is generated from
them, and the hardware is built from them. A field's ``metadata`` carries what the loader and the schema
need besides its type: ``doc`` (one sentence), ``unit`` (``"size"`` accepts ``16 GiB``), ``choices``,
``minimum``, ``maximum``, ``pattern`` with ``pattern_doc``, ``instead`` (ends the message for a value of
another kind), ``verbatim`` (text also where YAML sees a number), ``short_for`` (the key of the mapping that one word
in its place stands for). The rules between fields are in ``rules``.
"""

from __future__ import annotations

from typing import Any

import attrs
from attrs import field

from polymmu.description import rules
from polymmu.description.rules import ACCESSES

__all__ = [
    "ACCESSES",
    "PART_NAME",
    "REPLACEMENTS",
    "Costs",
    "KernelChoice",
    "MachineDescription",
    "TlbSpec",
    "WalkCacheSpec",
    "doc",
]

REPLACEMENTS = ("lru", "plru", "random")

# A part's name is a step of dotted paths (tlbs.L2.entries, tlb.L2@1.misses): no dot and no @ in it.
PART_NAME = r"[A-Za-z][A-Za-z0-9_-]{0,31}"
_VARIANT_NAME = r"[A-Za-z][A-Za-z0-9._-]{0,31}"
_RELEASE = r"([A-Za-z0-9][A-Za-z0-9._+-]{0,31})?"
_MACHINE_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"


def doc(text: str, **more: Any) -> dict[str, Any]:
    """Metadata of a field: its one-sentence documentation and whatever else the loader should know."""
    return {"doc": text, **more}


def cycles(default: int, text: str) -> Any:
    """A field that holds a number of cycles; bounded so that sums over a long run stay exact in 64 bits."""
    return field(default=default, metadata=doc(text, minimum=0, maximum=10**9))


def variant(default: str, text: str) -> Any:
    """A field that names one of the algorithms on its axis."""
    return field(
        default=default,
        metadata=doc(text, pattern=_VARIANT_NAME, pattern_doc="a name (letters, digits, . _ and -)"),
    )


@attrs.frozen(kw_only=True)
class TlbSpec:
    """One TLB of every CPU. Geometry only; what it holds at run time is the hardware's business."""

    level: int = field(
        metadata=doc("1 is looked up first; a miss at every level walks", minimum=1, maximum=4)
    )
    holds: tuple[str, ...] = field(
        default=ACCESSES,
        metadata=doc("kinds of access that look here", choices=ACCESSES),
        validator=rules.check_once_each,
    )
    page_sizes: tuple[int, ...] = field(
        metadata=doc("page sizes an entry may have", unit="size"), validator=rules.check_page_sizes
    )
    entries: int = field(metadata=doc("number of entries", minimum=1, maximum=1 << 20))
    ways: int = field(
        metadata=doc("entries per set; equal to entries: fully associative", minimum=1),
        validator=rules.check_ways,
    )
    replacement: str = field(
        default="lru", metadata=doc("lru, plru (tree) or random (seeded)", choices=REPLACEMENTS)
    )
    hit_cycles: int = cycles(0, "cycles a hit here costs beyond tlb_hit")


@attrs.frozen(kw_only=True)
class WalkCacheSpec:
    """One paging-structure cache of every CPU: entries of one table level, so that walks start lower."""

    level: int = field(
        metadata=doc(
            "how many table levels lie below the entries it holds: 1 holds pmd entries (PDE cache), "
            "2 pud entries, ...",
            minimum=1,
            maximum=4,
        )
    )
    entries: int = field(metadata=doc("number of entries; 0: the CPU has none", minimum=0, maximum=1 << 16))
    ways: int = field(
        metadata=doc("entries per set; equal to entries: fully associative", minimum=1),
        validator=rules.check_ways,
    )
    replacement: str = field(
        default="lru", metadata=doc("lru, plru (tree) or random (seeded)", choices=REPLACEMENTS)
    )


@attrs.frozen(kw_only=True)
class Costs:
    """Cycles. Every one is a parameter of the model, never measured from the host."""

    access: int = cycles(1, "one load, store or fetch, before any translation cost")
    tlb_hit: int = cycles(0, "a look-up that hits in a level-1 TLB")
    walk_reference: int = cycles(20, "one table entry read by the walker")
    walk_cache_hit: int = cycles(1, "a walk that starts from a walk cache")
    ad_update: int = cycles(20, "an accessed or dirty bit set by the walker")
    fault: int = cycles(1000, "entering and leaving the fault handler")
    syscall: int = cycles(200, "entering and leaving one memory system call")
    page_clear: int = cycles(400, "zeroing or copying one base page")
    entry_update: int = cycles(4, "the kernel reading or changing one table entry")
    vma_visit: int = cycles(
        20, "the kernel looking at one vma on its way from a page to the ptes that map it"
    )
    table_alloc: int = cycles(500, "allocating and clearing one page-table page")
    flush_page: int = cycles(120, "invalidating one page in the local TLBs")
    flush_all: int = cycles(300, "invalidating a whole address space locally")
    ipi: int = cycles(2000, "interrupting one other CPU and waiting for it")
    context_switch: int = cycles(1500, "loading another address space")
    page_io: int = cycles(100_000, "reading a page from the swap area, or writing one there or to its file")


@attrs.frozen(kw_only=True)
class KernelChoice:
    """Which mm algorithms run: one key per axis. Earlier generations come from plugins (``polymmu_history``)."""

    release: str = field(
        default="",
        metadata=doc(
            "a release of Linux, such as 2.6.11, whose choices are laid below the other keys; empty: none",
            pattern=_RELEASE,
            pattern_doc="a release (digits, letters, . _ + -)",
            verbatim=True,
        ),
    )
    gather: str = variant("linked", "how pages are gathered for a flush")
    free_pgtables: str = variant("vma_list", "which page tables go when a range is unmapped")
    page_table_lock: str = variant("split", "what guards ptes: a lock per table, or one per mm")
    unmap_vmas: str = variant("work", "how a zap below i_mmap_lock is cut into blocks")
    truncate: str = variant("restart-count", "how a file's pages leave every mm")
    fault_recheck: str = variant("cache", "what a fault of a file checks below the table lock")
    mremap: str = variant("extents", "how mremap moves pages")
    gup: str = variant("foll-write", "how get_user_pages sees to it that it holds the right page")
    swap_in: str = variant("by-slot", "what a fault asks of a page it has found in the swap cache")
    rmap_tree: str = variant("interval", "how a file's vmas are found by page: interval or prio, core's both")
    try_to_unmap: str = variant("flush-each", "how a page that goes out is taken out of its ptes")
    cluster_scan: str = variant("lockbreak", "how pages are taken out of nonlinear mappings")
    ops: str = variant("own", "whose steps the core takes where it asks the architecture")
    table_free: str = field(
        default="auto",
        metadata=doc(
            "when an unhooked table is freed: right after the flush, after RCU's grace period, or as the arch says",
            choices=("auto", "immediate", "rcu"),
        ),
    )
    i_mmap_lock: str = field(
        default="mutex",
        metadata=doc(
            "what guards a file's list of vmas: a mutex (3.0), or a spinlock", choices=("mutex", "spin")
        ),
    )
    anon_vma_lock: str = field(
        default="auto",
        metadata=doc(
            "what guards the list of vmas behind anonymous pages: a mutex (3.0), a spinlock, or as i_mmap_lock, "
            "for both became mutexes at once",
            choices=("auto", "mutex", "spin"),
        ),
        validator=rules.check_anon_vma_lock,
    )
    gather_batch: int = field(
        default=10_000,
        metadata=doc("pages a gather may hold before it must flush (Linux 3.8: about 10,000)", minimum=8),
    )
    table_batch: int = field(
        default=0,
        metadata=doc("tables a gather queues before they go to RCU; 0: as many as a page holds", minimum=0),
    )
    preempt: bool = field(
        default=True,
        metadata=doc(
            "a preemptible kernel: who waits for a spinlock can ask for it, and truncation looks every 8 pages, "
            "not every 1024"
        ),
    )
    zap_block: int = field(
        default=0,
        metadata=doc("pages zapped between two looks at who waits; 0: as `preempt` says", minimum=0),
    )
    fast_mode: bool = field(
        default=False,
        metadata=doc(
            "free pages at once and flush at the end on a machine with one CPU (Linux 2.6 to 3.9); unsound where tasks "
            "take turns, but with a gather that keeps preemption off"
        ),
    )
    truncate_count_bits: int = field(
        default=32,
        metadata=doc("width of a file's count of truncations (Linux: 32)", minimum=2, maximum=32),
    )
    truncate_restart_bits: int = field(
        default=0,
        metadata=doc(
            "low bits that are zero in a restart address; 0: those of a page's offset", minimum=0, maximum=12
        ),
    )
    truncate_count_start: int = field(
        default=0,
        metadata=doc(
            "calls that a new file's count of truncations has behind it (Linux: 0), for what shows only after many",
            minimum=0,
            maximum=(1 << 32) - 1,
        ),
    )
    vm_max_map_count: int = field(default=65_530, metadata=doc("mappings one mm may have", minimum=1))
    overcommit: str = field(
        default="always",
        metadata=doc(
            "whether programs may be promised more memory than there is: always, heuristic (no single request for "
            "more than all of it), or never",
            choices=("always", "heuristic", "never"),
        ),
    )
    overcommit_ratio: int = field(
        default=50,
        metadata=doc(
            "percent of memory that may be promised, beside the swap area, where overcommit is never",
            minimum=0,
        ),
    )
    pagevec: int = field(
        default=15, metadata=doc("pages a per-CPU pagevec holds before it drains", minimum=1)
    )

    @property
    def anon_vma_spins(self) -> bool:
        """Whether the lock of an anon_vma is a spinlock."""
        return "spin" in (self.anon_vma_lock, self.anon_vma_lock == "auto" and self.i_mmap_lock)


@attrs.frozen(kw_only=True)
class MachineDescription:
    """A whole machine file, checked. ``section`` is an instance of the arch's own class."""

    machine: int = field(default=1, metadata=doc("version of this format", choices=(1,)))
    name: str = field(
        metadata=doc(
            "name of the machine", pattern=_MACHINE_NAME, pattern_doc="a name (letters, digits, . _ + -)"
        )
    )
    summary: str = field(
        default="", metadata=doc("one line for `polymmu machines`"), validator=rules.check_line
    )
    arch: str = field(metadata=doc("name of an installed architecture plugin"))
    cpus: int = field(default=1, metadata=doc("number of CPUs", minimum=1, maximum=64))
    memory: int = field(
        metadata=doc("physical memory", unit="size", minimum=1 << 20, maximum=1 << 46),
        validator=rules.check_whole_mib,
    )
    swap: int = field(
        default=0,
        metadata=doc("swap area; 0: no page is ever reclaimed", unit="size", minimum=0, maximum=1 << 46),
        validator=rules.check_whole_mib,
    )
    kernel: KernelChoice = field(
        factory=KernelChoice,
        metadata=doc(
            "mm algorithms, one key each; one word is short for the key `release`",
            short_for="release",
            instead=', or a release such as "2.6.11"',
        ),
    )
    tlbs: dict[str, TlbSpec] = field(
        factory=dict[str, TlbSpec], metadata=doc("TLBs by name"), validator=rules.check_tlb_levels
    )
    walk_caches: dict[str, WalkCacheSpec] = field(
        factory=dict[str, WalkCacheSpec],
        metadata=doc("paging-structure caches by name"),
        validator=rules.check_cache_levels,
    )
    costs: Costs = field(factory=Costs, metadata=doc("cycles"))
    seed: int = field(default=0, metadata=doc("seed of everything random in the hardware", minimum=0))
    section: Any = field(default=None, metadata=doc("the arch's own section, under the arch's name"))
