"""Breakages that may pass unnoticed, and why: some are right and only dearer, some concern what an arch lacks.

The mutation table prints these reasons. A breakage that survives without one is a hole in the kit.
"""

from __future__ import annotations

from collections.abc import Callable

from polymmu.conformance.bench import Bench

__all__ = ["MAY_SURVIVE", "NEEDS"]

NEEDS: dict[tuple[str, str], tuple[Callable[[Bench], bool], str]] = {
    ("address_limits", "the holes are forgotten"): (
        lambda bench: bool(bench.shape.limits.holes),
        "it has no holes",
    ),
    ("ptep_get_and_clear", "forgets dirty"): (
        lambda bench: bench.shape.pte.dirty is not None,
        "its ptes have no dirty bit",
    ),
    **{
        (hook, "freed before the flush"): (
            lambda bench: "tables_freed_early" not in bench.deviations,
            "that is its declared deviation",
        )
        for hook in ("pte_free_tlb", "table_free_tlb")
    },
}
"""What a breakage needs to be one, and what to say of an architecture that has it on no machine."""

DEARER = "the default is right too, only dearer"
SPEED = "only speed"
MAY_SURVIVE: dict[tuple[str, str], str] = {
    ("summary", "left out"): "only the listing shows it",
    ("read_image", "left out"): "only `translate` asks it, for saved memory; the arch's own tests do",
    ("deviations", "left out"): "it declares none on the machines checked",
    (
        "memory_model",
        "left out",
    ): "only the explorer asks it, for what is explored beyond sequential consistency",
    ("boot_registers", "no register has a value"): "registers that are not given are as after boot",
    ("pgd_alloc", "left out"): "the tables that the arch brings with its root then come at the first fault",
    ("set_pte", "left out"): "the core clears an entry before it sets it: nothing live is replaced",
    ("test_and_clear_young", "left out"): "the default goes through set_pte, which is right too",
    ("tlb_finish", "left out"): "the last flush of the gather leaves it nothing to do",
    ("tlb_flush", "does nothing"): "all it would flush was flushed when the table lock was dropped",
    **{
        (hook, "this CPU only"): "the other CPUs were reached where the entries changed"
        for hook in ("tlb_flush", "flush_tlb_mm", "flush_tlb_range", "flush_tlb_page")
    },
    (
        "init_new_context",
        "one context for all",
    ): "its context holds no number that tells address spaces apart",
    ("flush_tlb_range", "the first page only"): "its flush does not go by the range",
    ("flush_tlb_page", "the next page"): "its flush does not go by the address",
    ("tlb_gather", "left out"): "the flush then comes at the end of the gather, not before it",
    ("tlb_gather", "does nothing"): "the flush then comes at the end of the gather, not before it",
    ("tlb_flush", "the first page only"): "its flush does not go by the gather's range",
    ("switch_mm", "keeps what is cached"): "address spaces are told apart by their tags: nothing has to go",
    ("huge_protections", "left out"): "hardware does not read the mark that it adds",
    ("have_move_pmd", "left out"): f"{SPEED}: tables are moved entry by entry instead",
    **{
        (hook, "left out"): DEARER
        for hook in (
            "flush_tlb_mm",
            "flush_tlb_range",
            "flush_tlb_page",
            "tlb_flush",
            "switch_mm",
            "set_access_flags",
            "pte_free_tlb",
            "table_free_tlb",
            "ptep_clear_flush",
        )
    },
    ("update_mmu_cache", "left out"): f"{SPEED}: the translation is found at the retry",
    **{
        ("enter_lazy_tlb", how): f"{SPEED}: a lazy CPU is then flushed like one that runs the mm"
        for how in ("left out", "does nothing")
    },
    ("enter_lazy_mmu", "left out"): f"{SPEED}: updates are then done one by one",
    ("tables_need_rcu", "left out"): "needed by lockless walkers only, and none runs beside one program",
}
"""What may pass unnoticed, and why. An entry is used only where the breakage does pass."""
