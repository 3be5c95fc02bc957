"""What happens when the TLB has nothing: segment buffer, hash table, and the hash fault handler that fills it.

ERAT miss: the segment must be in the segment buffer (SLB), else a trap whose handler works the VSID out of the
context and puts it into the next slot, round robin behind the three bolted ones. TLB miss: hardware searches the
primary, then the secondary group of the hash table. Nothing found, or a store to a page that is read-only there:
a data storage interrupt, whose handler (Linux: hash_page) walks Linux's tables, marks the pte accessed, on a store
dirty, and hashed with the entry's slot, and updates or inserts the entry; the access is made again. Where the tables
do not allow the access, it is a page fault.

A full pair of groups loses an entry, without tlbie: a TLB may know what the hash table no longer does, which is why
every flush sends one. Which entry goes Linux takes from the timebase; here a count of evictions stands for it. No
entry is bolted, the kernel's own memory not being emulated; BUSY comes and goes within one miss, where nobody can
see it. A TLB entry's tag is the context: with the address it says as much as the VSID that Linux makes of the two.

The steps take the words and where the MMU's own begin in them, so that hooks can use them on ``cpu.mmu``.
Sources: PowerPC Architecture Book III; Linux 2.6.12 to 2.6.39 ``hash_low``, ``hash_utils``, ``slb_low``.
"""

from __future__ import annotations

from polymmu.arch import (
    DIRTY,
    EVENTS,
    FAULT_ENTRY,
    FAULT_PLACE,
    MMU,
    PEEK,
    RAM_BYTES,
    REFERENCES,
    ROOT,
    SEGMENT,
    SUPERVISOR_RIGHTS,
    USER_RIGHTS,
    WALK_ROOT,
    WALKS,
    Words,
    give,
    kernel,
    read_entry,
    space_of,
    step,
    write_entry,
)
from polymmu_ppc64.formats import ACCESSED, EXEC, PRESENT, RW, SLOT, USER
from polymmu_ppc64.formats import DIRTY as P_DIRTY
from polymmu_ppc64.hashing import (
    avpn_step,
    hash_step,
    hpte_flags_step,
    segment_shift_step,
    slb_esid_step,
    vsid_in_step,
    vsid_step,
)

HTAB = 0  # physical address of the hash table
GROUP_MASK = 1  # its groups - 1
CONTEXT_SHIFT = 2  # where the context stands in a proto-VSID of a 256 MiB segment
BIG_SEGMENTS = 3  # 1: from 1 TiB on segments of 1 TiB
SEGMENT_KEYS = 4  # Ks, Kp and class of a user's segment
HASHED = 5  # the pte bit that says that the hash table has it
PFN_SHIFT = 6
LOW_SLICES = 7  # a nibble per 256 MiB below 4 GiB: not 0 means huge pages
HIGH_SLICES = 8  # a nibble per 2**HIGH_SHIFT bytes
HIGH_SHIFT = 9
HUGE_ROOT = 10  # 2.6.12: the tree of huge pages; -1: none
USER_BITS = 11  # log2 of the user's address space
NEXT_SLB = 12  # the slot that the next segment takes
LAST_SLB = 13  # where a segment was found last
EVICTED = 14  # entries evicted; stands for the timebase
PAGE_SHIFT = 15
READS = 16  # scratch: hash-table and Linux entries read for this miss
EVICTIONS = 17  # scratch: not counted as events yet
LEVELS = 20  # rows of the Linux tables, top first: shift, index mask, bytes
HUGE_LEVELS = 36  # rows of the separate tree
SLB = 48  # 64 entries: ESID word, VSID word
SLB_WORDS = 128
FIRST_SLOT = SLB + 2 * 3  # linear mapping, vmalloc and kernel stack are bolted
SLB_MISS, HASH_FAULT, EVICTION = EVENTS, EVENTS + 1, EVENTS + 2
NOT_PRESENT, NO_PERMISSION = 1, 3  # WalkFault
FETCH, STORE = 0, 2  # Access
SLOT_SHIFT, HUGE_SHIFT = 12, 24
ADDRESS = (1 << 60) - 1  # of a table, in an entry that holds its kernel address
HPTE_SOFTWARE = 0x78
HPTE_FRAME = ((1 << 50) - 1) << 12
PTEG, HPTE = 128, 16


@step
def page_shift_step(words: Words, at: int, ea: int) -> int:
    """Log2 of the pages that a user's segment holds."""
    if ea >> 32:
        code = words[at + HIGH_SLICES] >> (ea >> words[at + HIGH_SHIFT] << 2) & 15
    else:
        code = words[at + LOW_SLICES] >> (ea >> 28 << 2) & 15
    return HUGE_SHIFT if code else words[at + PAGE_SHIFT]


@step
def vsid_word_step(words: Words, at: int, context: int, ea: int, page_shift: int) -> int:
    """The second word of the buffer entry for a user's segment."""
    size = 0 if page_shift == 12 else 0x110 if page_shift == 16 else 0x100
    keys = words[at + SEGMENT_KEYS] | size
    if words[at + BIG_SEGMENTS] and ea >> 40:
        return 1 << 62 | vsid_step(context << 4 | ea >> 40, 40) << 24 | keys
    return vsid_step(context << words[at + CONTEXT_SHIFT] | ea >> 28, 28) << 12 | keys


@step
def find_segment(state: Words, ea: int) -> int:
    """The second word of the buffer entry for ``ea``; a miss traps, and the handler puts one in.

    Beyond the user's addresses the handler gives VSID 0, which no entry of the hash table has.
    """
    is_user = ea >> state[MMU + USER_BITS] == 0
    esid = slb_esid_step(ea, 40 if is_user and state[MMU + BIG_SEGMENTS] and ea >> 40 else 28)
    last = MMU + state[MMU + LAST_SLB]
    if state[last] == esid:
        return state[last + 1]
    for slot in range(MMU + SLB, MMU + SLB + SLB_WORDS, 2):
        if state[slot] == esid:
            state[MMU + LAST_SLB] = slot - MMU
            return state[slot + 1]
    state[SLB_MISS] += 1
    slot = state[MMU + NEXT_SLB]
    state[MMU + NEXT_SLB] = slot + 2 if slot + 2 < SLB + SLB_WORDS else FIRST_SLOT
    state[MMU + LAST_SLB] = slot
    word = 0
    if is_user:
        context = space_of(state, ea)
        word = vsid_word_step(state, MMU, context, ea, page_shift_step(state, MMU, ea))
    state[MMU + slot] = esid
    state[MMU + slot + 1] = word
    return word


@step
def base_page(vsid_word: int) -> int:
    """Log2 of a segment's pages."""
    size = vsid_word & 0x130
    return 12 if size == 0 else 16 if size == 0x110 else HUGE_SHIFT


@step
def wanted(vsid_word: int, ea: int) -> int:
    """The first doubleword of a primary entry for ``ea``, its software bits zero."""
    page = base_page(vsid_word)
    avpn = avpn_step(vsid_in_step(vsid_word), ea, segment_shift_step(vsid_word), page)
    return avpn | 1 | (4 if page != 12 else 0)


@step
def hash_for(vsid_word: int, ea: int) -> int:
    """The hash of ``ea`` in its segment."""
    vsid = vsid_in_step(vsid_word)
    return hash_step(vsid, ea, segment_shift_step(vsid_word), base_page(vsid_word))


@step
def size_code(page_shift: int) -> int:
    """What an entry's frame number says about its size, in place; a 4 KiB page's says nothing."""
    return 1 << 12 if page_shift == 16 else 0


@step
def group_at(words: Words, at: int, found: int, secondary: int) -> int:
    """Physical address of the group that a hash chooses."""
    return words[at + HTAB] + ((found ^ -secondary) & words[at + GROUP_MASK]) * PTEG


@step
def search(words: Words, at: int, ram: Words, vsid_word: int, ea: int) -> int:
    """Where the hash table has the entry for ``ea``; -1: nowhere. Every entry looked at is a read.

    An entry whose page is not of the segment's base size is passed over: none of these kernels makes one.
    """
    first = wanted(vsid_word, ea)
    found = hash_for(vsid_word, ea)
    page = base_page(vsid_word)
    code_mask = 0 if page == 12 else (1 << page) - (1 << 12)
    for secondary in range(2):
        group = group_at(words, at, found, secondary)
        for place in range(group, group + PTEG, HPTE):
            words[at + READS] += 1
            is_ours = read_entry(ram, place, 8, 1) & ~HPTE_SOFTWARE == first | secondary << 1
            if is_ours and read_entry(ram, place + 8, 8, 1) & code_mask == size_code(page):
                return place
    return -1


@step
def write_hpte(ram: Words, place: int, first: int, second: int) -> None:
    """Fill an entry: the half that makes it valid comes last."""
    write_entry(ram, place + 8, 8, 1, second)
    write_entry(ram, place, 8, 1, first)


@step
def insert(words: Words, at: int, ram: Words, found: int, first: int, second: int) -> int:
    """Put an entry into a free slot of its primary, else secondary group, else in place of another.

    Returns the slot, and 8 more in the secondary group: what the pte remembers.
    """
    for secondary in range(2):
        group = group_at(words, at, found, secondary)
        for slot in range(8):
            words[at + READS] += 1
            if read_entry(ram, group + slot * HPTE, 8, 1) & 1 == 0:
                write_hpte(ram, group + slot * HPTE, first | secondary << 1, second)
                return secondary << 3 | slot
    clock = words[at + EVICTED]
    words[at + EVICTED] = clock + 1
    words[at + EVICTIONS] += 1
    secondary = clock & 1
    slot = clock >> 1 & 7
    write_hpte(ram, group_at(words, at, found, secondary) + slot * HPTE, first | secondary << 1, second)
    return secondary << 3 | slot


@step
def recorded_at(words: Words, at: int, ram: Words, vsid_word: int, ea: int, pte: int) -> int:
    """Where a hashed pte's entry is: at the slot it remembers, if it still is there; else -1."""
    slot = pte >> SLOT_SHIFT & 15
    place = group_at(words, at, hash_for(vsid_word, ea), slot >> 3) + (slot & 7) * HPTE
    first = wanted(vsid_word, ea) | slot >> 3 << 1
    words[at + READS] += 1
    return place if read_entry(ram, place, 8, 1) & ~HPTE_SOFTWARE == first else -1


@step
def enter(words: Words, at: int, ram: Words, vsid_word: int, ea: int, ptep: int, pte: int) -> bool:
    """Let the hash table say what ``pte`` does, and the pte in memory where; whether an entry was changed."""
    page = base_page(vsid_word)
    frame = (pte >> words[at + PFN_SHIFT]) << words[at + PAGE_SHIFT] & HPTE_FRAME
    second = frame | size_code(page) | hpte_flags_step(pte)
    place = recorded_at(words, at, ram, vsid_word, ea, pte) if pte & words[at + HASHED] else -1
    if place >= 0:
        write_entry(ram, place + 8, 8, 1, second)
    else:
        slot = insert(words, at, ram, hash_for(vsid_word, ea), wanted(vsid_word, ea), second)
        pte = pte & ~SLOT | slot << SLOT_SHIFT | words[at + HASHED]
    write_entry(ram, ptep, 8, 1, pte)
    return place >= 0


@step
def find_pte(state: Words, ram: Words, root: int, ea: int) -> int:
    """Physical address of the pte for ``ea``, of a huge page too; -1 where a table is missing."""
    if ea >> state[MMU + USER_BITS]:
        return -1
    is_huge = page_shift_step(state, MMU, ea) == HUGE_SHIFT
    row = MMU + LEVELS
    table = root
    if is_huge and state[MMU + HUGE_LEVELS]:
        row = MMU + HUGE_LEVELS
        table = state[MMU + HUGE_ROOT]
    while True:
        nbytes = state[row + 2]
        place = table + (ea >> state[row] & state[row + 1]) * nbytes
        if table < 0 or place + nbytes > state[RAM_BYTES]:
            return -1
        if state[row + 3] == 0:
            return place
        entry = read_entry(ram, place, nbytes, 1)
        state[MMU + READS] += 1
        state[FAULT_PLACE] = place
        state[FAULT_ENTRY] = entry
        if entry == 0:
            return -1
        if nbytes == 4:  # 2.6.12: the table's frame number
            table = entry << 12
        elif is_huge and entry > 0:  # a hugepd: kernel address without its top bit, and the page's size
            return (entry & ADDRESS & -64) + ((ea & (1 << state[row]) - 1) >> (entry & 63)) * 8
        else:
            table = entry & ADDRESS
        row += 4


@step
def refusal(pte: int, access: int) -> int:
    """Why a pte does not allow ``access`` (-1: none) to a user's address, whoever asks; 0: it does."""
    if pte & PRESENT == 0:
        return NOT_PRESENT
    needs = USER | RW if access == STORE else USER | EXEC if access == FETCH else USER
    return NO_PERMISSION if access >= 0 and ~pte & needs else 0


@step
def rights(readable: int, writable: int, executable: int) -> int:
    """INFO bits. A user's segments have both keys set: the supervisor has the user's rights there."""
    three = (executable | readable << 1 | writable << 2) if readable else 0
    return three << SUPERVISOR_RIGHTS | three << USER_RIGHTS


@step
def hash_page(state: Words, ram: Words, ea: int, access: int, vsid_word: int) -> int:
    """The hash fault handler: 0 once the hash table has the page, else why it is a page fault."""
    place = find_pte(state, ram, state[ROOT], ea)
    if place < 0:
        return NOT_PRESENT
    pte = read_entry(ram, place, 8, 1)
    state[MMU + READS] += 1
    fault = refusal(pte, access)
    if fault:
        state[FAULT_PLACE] = place
        state[FAULT_ENTRY] = pte
        return fault
    pte |= ACCESSED | P_DIRTY if access == STORE else ACCESSED
    enter(state, MMU, ram, vsid_word, ea, place, pte)
    return 0


@step
def is_writable_pte(state: Words, ram: Words, ea: int) -> bool:
    """Whether a store may succeed though hardware refuses it, the page being clean. No part of the machine asks:
    it is what makes a TLB entry ask again at its first store, as the trap would. So it is not counted."""
    reads = state[MMU + READS]
    place = find_pte(state, ram, state[ROOT], ea)
    state[MMU + READS] = reads
    return place >= 0 and read_entry(ram, place, 8, 1) & RW != 0


@step
def peek(state: Words, ram: Words, ea: int, access: int) -> int:
    """What Linux's tables say."""
    root = state[WALK_ROOT]
    place = find_pte(state, ram, state[ROOT] if root < 0 else root, ea)
    if place < 0:
        return NOT_PRESENT
    pte = read_entry(ram, place, 8, 1)
    fault = refusal(pte, access)
    if fault:
        return fault
    info = rights(pte & USER and 1, pte & RW and 1, pte & EXEC and 1)
    frame = (pte >> state[MMU + PFN_SHIFT]) << state[MMU + PAGE_SHIFT] & HPTE_FRAME
    page = page_shift_step(state, MMU, ea)
    return give(state, frame, page, info | DIRTY if pte & P_DIRTY else info, 0)


@kernel
def ppc64_miss(state: Words, ram: Words, va: int, access: int, mode: int) -> int:
    """The miss routine; see the top of this file."""
    state[FAULT_PLACE] = -1
    state[FAULT_ENTRY] = 0
    if mode == SEGMENT:
        find_segment(state, va)
        return 0
    state[MMU + READS] = 0
    if mode == PEEK:
        return peek(state, ram, va, access)
    state[WALKS] += 1
    vsid_word = find_segment(state, va)
    fault = 0
    for is_retry in range(2):  # a handler that changes nothing would be called for ever
        place = search(state, MMU, ram, vsid_word, va)
        second = read_entry(ram, place + 8, 8, 1) if place >= 0 else 0
        protection = second & 3 if place >= 0 else 0
        may = rights(protection != 0, protection == 2, second & 0xC == 0)
        if may >> (USER_RIGHTS + access) & 1:
            if protection == 3 and is_writable_pte(state, ram, va):
                may = may | 4 << SUPERVISOR_RIGHTS | 4 << USER_RIGHTS
            page = base_page(vsid_word)
            may = may | DIRTY if protection == 2 else may
            fault = give(state, second & HPTE_FRAME & -(1 << page), page, may, 0)
            break
        fault = NO_PERMISSION
        if not is_retry:
            state[HASH_FAULT] += 1
            fault = hash_page(state, ram, va, access, vsid_word)
            if fault:
                break
    state[REFERENCES] += state[MMU + READS]
    state[EVICTION] += state[MMU + EVICTIONS]
    state[MMU + EVICTIONS] = 0
    return fault


@kernel
def preload(words: Words, ram: Words, context: int, ea: int, ptep: int, n: int, page_shift: int) -> int:
    """Enter a run of young ptes into the hash table; how many entries were changed, not made."""
    changed = 0
    for k in range(n):
        pte = read_entry(ram, ptep + 8 * k, 8, 1)
        if ~pte & (PRESENT | USER | ACCESSED) == 0:
            address = ea + (k << page_shift)
            word = vsid_word_step(words, 0, context, address, page_shift)
            changed += enter(words, 0, ram, word, address, ptep + 8 * k, pte)
    return changed


@kernel
def drop_hptes(
    words: Words, ram: Words, context: int, addresses: Words, ptes: Words, page_shift: int
) -> None:
    """Make the entries invalid that a batch of old ptes remembers, where they still are."""
    for k in range(addresses.size):
        word = vsid_word_step(words, 0, context, addresses[k], page_shift)
        place = recorded_at(words, 0, ram, word, addresses[k], ptes[k])
        if place >= 0:
            write_entry(ram, place, 8, 1, 0)
