"""What happens at a TLB miss: a trap, and a handler of a few instructions. Two generations of Linux's.

``ask_tsb`` (2.6.17 on): the handler looks into the translation storage buffer in memory (``tsb``), one for base
pages and one for huge pages; where neither has the address, it walks the three tables by physical address and enters
what it finds into the buffer.

``ask_linear_table`` (to 2.6.16): all ptes of an address space appear as one array in its own virtual memory, around
``VPTE_BASE``, and the handler loads the pte from there. That load goes through the data TLB: a miss inside the miss
(trap level 2) walks pgd and pmd and enters the page of ptes as a privileged page that nobody may write. Such an entry
outlives the table it points to, unless somebody demaps it (``flush_tlb_pgtables``).

A pte without V is no answer: the handler goes on to the full fault. A store to a page without W finds the TLB loaded
and traps a second time, so the fault leaves the entry where it is, and software must demap it.

Sources: Linux 2.6.11 ``dtlb_base.S``, ``dtlb_backend.S``; 2.6.39 ``tsb.S``, ``dtlb_miss.S``, ``itlb_miss.S``;
UltraSPARC User's Manual ch. 6 (order of the checks).
"""

from __future__ import annotations

from polymmu.arch import (
    DIRTY,
    EVENTS,
    FAULT_ENTRY,
    FAULT_PLACE,
    MMU,
    NEED,
    PEEK,
    RAM_BYTES,
    REFERENCES,
    ROOT,
    SUPERVISOR_RIGHTS,
    USER_RIGHTS,
    WALK_ROOT,
    WALKS,
    Words,
    fill_tlb,
    give,
    kernel,
    read_entry,
    space_of,
    step,
    through_tlb,
    write_entry,
)
from polymmu_sparc64.tte import PAGE_SHIFT, tag_of, tsb_pointer

NOT_PRESENT, NO_PERMISSION, NON_CANONICAL, TABLE_UNREADABLE = 1, 3, 4, 6  # WalkFault
FETCH, LOAD = 0, 1
MAY_FETCH, MAY_LOAD, MAY_STORE = 1, 2, 4
PGD_SHIFT, INDEX_BITS, INDEX_MASK = 34, 11, 2047  # of the pgd; the pmd's index stands INDEX_BITS lower
PTE_TABLE_BYTES = 8192
BIG = 1
VA_TOP_BIT = 43
VPTE_BASE = -(1 << 33)
VPTE_LOW = 2 * VPTE_BASE
TABLE_RIGHTS = MAY_LOAD << SUPERVISOR_RIGHTS
"""Of a page of the linear table."""

# --- words of the MMU's own: the TTE's format, the tables' entries, the TSB registers (-1: none), the generation
M_ADDRESS, M_SIZE_SHIFT, M_SIZE_MASK, M_EXECUTE, M_PRIVILEGED, M_WRITABLE, M_GLOBAL = range(7)
M_UPPER_BYTES, M_UPPER_SHIFT, M_HUGE_SHIFT, M_TSB, M_HUGE_TSB, M_HAS_TSB, M_WORDS = range(7, 14)

# --- events
E_TRAPS = 0
E_TSB_HITS, E_TSB_MISSES = 1, 2
E_VPTE_MISSES = 1


@step
def entry_at(state: Words, ram: Words, place: int, nbytes: int, counts: int) -> int:
    """A table's entry, noted in case it refuses."""
    entry = read_entry(ram, place, nbytes, BIG)
    state[REFERENCES] += counts
    state[FAULT_PLACE] = place
    state[FAULT_ENTRY] = entry
    return entry


@step
def table_of_ptes(state: Words, ram: Words, root: int, va: int, counts: int) -> int:
    """Physical address of the page of ptes for ``va``, from pgd and pmd; a WalkFault, negative, where none is."""
    table = root
    for level in range(2):
        place = table + (va >> (PGD_SHIFT - INDEX_BITS * level) & INDEX_MASK) * state[MMU + M_UPPER_BYTES]
        if table < 0:
            return -NOT_PRESENT
        if place + state[MMU + M_UPPER_BYTES] > state[RAM_BYTES]:
            return -TABLE_UNREADABLE
        entry = entry_at(state, ram, place, state[MMU + M_UPPER_BYTES], counts)
        if entry == 0:
            return -NOT_PRESENT
        table = entry << state[MMU + M_UPPER_SHIFT]
    if table < 0 or table + PTE_TABLE_BYTES > state[RAM_BYTES]:
        return -TABLE_UNREADABLE
    return table


@step
def pte_at(state: Words, ram: Words, place: int, counts: int) -> int:
    """The pte at a physical address: a TTE, negative (V), or NOT_PRESENT."""
    tte = entry_at(state, ram, place, 8, counts)
    return tte if tte < 0 else NOT_PRESENT


@step
def walk(state: Words, ram: Words, root: int, va: int, counts: int) -> int:
    """The TTE of ``va`` from all three tables, or a WalkFault."""
    table = table_of_ptes(state, ram, root, va, counts)
    if table < 0:
        return -table
    return pte_at(state, ram, table + (va >> PAGE_SHIFT - 3 & PTE_TABLE_BYTES - 8), counts)


@step
def size_of(state: Words, tte: int) -> int:
    """Log2 of the page that a TTE maps."""
    return PAGE_SHIFT + 3 * (tte >> state[MMU + M_SIZE_SHIFT] & state[MMU + M_SIZE_MASK])


@step
def answer(state: Words, tte: int, va: int, access: int, mode: int) -> int:
    """Give the page of a TTE, or refuse the access; a WalkFault in the TTE's place stays one.

    There is no dirty bit to set: a store either may or traps. It traps when the TLB has been loaded.
    """
    if tte >= 0:
        return tte
    rights = MAY_LOAD
    if tte & state[MMU + M_WRITABLE]:
        rights |= MAY_STORE
    if state[MMU + M_EXECUTE] == 0 or tte & state[MMU + M_EXECUTE]:
        rights |= MAY_FETCH
    info = rights << SUPERVISOR_RIGHTS | DIRTY
    if tte & state[MMU + M_PRIVILEGED] == 0:
        info |= rights << USER_RIGHTS
    shift = size_of(state, tte)
    frame = tte & state[MMU + M_ADDRESS] & -(1 << shift)
    if access >= 0 and ~info & state[NEED + access]:
        if mode != PEEK and access != FETCH:
            fill_tlb(state, access, va, frame, shift, info, space_of(state, va))
        return NO_PERMISSION
    return give(state, frame, shift, info, 1 if tte & state[MMU + M_GLOBAL] else 0)


@step
def tsb_entry(state: Words, ram: Words, register: int, va: int, page_shift: int) -> int:
    """The TTE of a TSB's entry for ``va``, read with its tag in one go; 0 where it is another's."""
    if register < 0:
        return 0
    place = tsb_pointer(register, va, page_shift, 0)
    state[REFERENCES] += 1
    if read_entry(ram, place, 8, BIG) != tag_of(va):  # a locked or invalid tag has a bit no address has
        return 0
    return read_entry(ram, place + 8, 8, BIG)


@step
def fill_tsb(state: Words, ram: Words, tte: int, va: int) -> None:
    """Enter a TTE into the TSB for pages of its size."""
    register = state[MMU + M_TSB]
    page_shift = PAGE_SHIFT
    if size_of(state, tte) == state[MMU + M_HUGE_SHIFT] and state[MMU + M_HUGE_TSB] >= 0:
        register = state[MMU + M_HUGE_TSB]
        page_shift = state[MMU + M_HUGE_SHIFT]
    if register >= 0:
        place = tsb_pointer(register, va, page_shift, 0)
        write_entry(ram, place + 8, 8, BIG, tte)
        write_entry(ram, place, 8, BIG, tag_of(va))


@step
def ask_tsb(state: Words, ram: Words, va: int) -> int:
    """The handler of the newer generation: a TTE or a WalkFault."""
    tte = tsb_entry(state, ram, state[MMU + M_TSB], va, PAGE_SHIFT)
    if tte == 0:
        tte = tsb_entry(state, ram, state[MMU + M_HUGE_TSB], va, state[MMU + M_HUGE_SHIFT])
    if tte < 0:
        state[EVENTS + E_TSB_HITS] += 1
        return tte
    state[EVENTS + E_TSB_MISSES] += 1
    tte = walk(state, ram, state[ROOT], va, 1)
    if tte < 0:
        fill_tsb(state, ram, tte, va)
    return tte


@step
def ask_linear_table(state: Words, ram: Words, va: int) -> int:
    """The handler of the older generation: a TTE or a WalkFault."""
    linear = VPTE_BASE + (va >> PAGE_SHIFT << 3)
    place = through_tlb(state, linear)
    if place < 0:
        state[EVENTS + E_VPTE_MISSES] += 1
        table = table_of_ptes(state, ram, state[ROOT], va, 1)
        if table < 0:
            return -table
        fill_tlb(state, LOAD, linear, table, PAGE_SHIFT, TABLE_RIGHTS, space_of(state, linear))
        place = table + (linear & PTE_TABLE_BYTES - 1)
    return pte_at(state, ram, place, 1)


@kernel
def tlb_miss(state: Words, ram: Words, va: int, access: int, mode: int) -> int:
    """The miss routine. A look at the tables also answers for the linear table's own addresses."""
    state[FAULT_PLACE] = -1
    state[FAULT_ENTRY] = 0
    if va >> VA_TOP_BIT != 0 and va >> VA_TOP_BIT != -1:
        return NON_CANONICAL
    if mode == PEEK:
        root = state[WALK_ROOT] if state[WALK_ROOT] >= 0 else state[ROOT]
        if state[MMU + M_HAS_TSB] or va >= 0 or va < VPTE_LOW:
            return answer(state, walk(state, ram, root, va, 0), va, access, mode)
        table = table_of_ptes(state, ram, root, (va - VPTE_BASE) << (PAGE_SHIFT - 3), 0)
        return give(state, table, PAGE_SHIFT, TABLE_RIGHTS, 0) if table >= 0 else -table
    state[WALKS] += 1
    state[EVENTS + E_TRAPS] += 1
    tte = ask_tsb(state, ram, va) if state[MMU + M_HAS_TSB] else ask_linear_table(state, ram, va)
    return answer(state, tte, va, access, mode)
