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
from polymmu_ppc64 import hashing
from polymmu_ppc64.formats import ACCESSED, EXEC, PRESENT, RW, SLOT, USER
from polymmu_ppc64.formats import DIRTY as P_DIRTY

base_page = step(hashing.base_page_of)
first_of = step(hashing.first_of)
hash_of = step(hashing.hash_of)
segment_shift_of = step(hashing.segment_shift_of)
slb_esid = step(hashing.slb_esid)
vsid_in = step(hashing.vsid_in)
vsid_of = step(hashing.vsid_of)

HTAB = 0  # physical address of the hash table
GROUP_MASK = 1  # its groups - 1
THREE_LEVELS = 2  # 1: Linux 2.6.12
BIG_SEGMENTS = 3  # 1: from 1 TiB on segments of 1 TiB
HASHED = 4  # the pte bit that says that the hash table has it
PFN_SHIFT = 5
PAGE_SHIFT = 6
SLICES = 7  # where huge pages are: a bit per 256 MiB below 4 GiB, from bit 16 on per 512 GiB or 1 TiB
HUGE_ROOT = 8  # 2.6.12: the tree of huge pages; -1: none
USER_BITS = 9  # log2 of the user's address space
NEXT_SLB = 10  # the slot that the next segment takes
LAST_SLB = 11  # where a segment was found last
EVICTED = 12  # entries evicted; stands for the timebase
READS = 13  # scratch: hash-table and Linux entries read for this miss
EVICTIONS = 14  # scratch: not counted as events yet
LEVELS = 20  # rows of the Linux tables, top first: shift, index mask, bytes, whether more follow
HUGE_TREE = 36  # the row of the separate tree's root
HUGE_PTES = 40  # the row of a table of huge ptes
SLB = 48  # 64 entries: ESID word, VSID word
SLB_WORDS = 128
FIRST_SLOT = SLB + 2 * 3  # linear mapping, vmalloc and kernel stack are bolted
SLB_MISS, HASH_FAULT, EVICTION = EVENTS, EVENTS + 1, EVENTS + 2
NOT_PRESENT, NO_PERMISSION = 1, 3  # WalkFault
FETCH, STORE = 0, 2  # Access
HUGE_SHIFT = 24
HUGEPD_ADDRESS = (1 << 60) - 64
TABLE_ADDRESS = (1 << 60) - 1
HPTE_SOFTWARE = 0x78
HPTE_FRAME = ((1 << 50) - 1) << 12


# ------------------------------------------------------------------ segments
@step
def page_shift_at(words: Words, at: int, ea: int) -> int:
    """Log2 of the pages that a user's segment holds."""
    area = 16 + (ea >> 40 - words[at + THREE_LEVELS]) if ea >> 32 else ea >> 28
    return HUGE_SHIFT if words[at + SLICES] >> area & 1 else words[at + PAGE_SHIFT]


@step
def segment_word(words: Words, at: int, context: int, ea: int, page: int) -> int:
    """The second word of the buffer entry for a user's segment."""
    is_old = words[at + THREE_LEVELS]
    keys = 0xC00 if is_old else 0xC80  # Ks, Kp, and as of 2.6.14 the user's class
    keys |= 0 if page == 12 else 0x110 if page == 16 else 0x100
    if words[at + BIG_SEGMENTS] and ea >> 40:
        return 1 << 62 | vsid_of(context << 4 | ea >> 40, 40) << 24 | keys
    return vsid_of(context << 16 - is_old | ea >> 28, 28) << 12 | keys


@step
def find_segment(state: Words, ea: int) -> int:
    """The second word of the buffer entry for ``ea``; a miss traps, and the handler puts one in.

    Beyond the user's addresses the handler gives VSID 0, which no entry of the hash table has.
    """
    is_user = ea >> state[MMU + USER_BITS] == 0
    esid = slb_esid(ea, 40 if is_user and state[MMU + BIG_SEGMENTS] and ea >> 40 else 28)
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
        word = segment_word(state, MMU, space_of(state, ea), ea, page_shift_at(state, MMU, ea))
    state[MMU + slot] = esid
    state[MMU + slot + 1] = word
    return word


# ------------------------------------------------------------------ hash table
@step
def wanted(word: int, ea: int) -> int:
    """The first doubleword of a primary entry for ``ea``, its software bits zero."""
    first = first_of(vsid_in(word), ea, segment_shift_of(word), base_page(word))
    return first if base_page(word) == 12 else first | 4


@step
def slot_at(words: Words, at: int, word: int, ea: int, slot: int) -> int:
    """Physical address of an entry: slot 0 to 7 of the primary group of ``ea``, 8 to 15 of the secondary one."""
    found = hash_of(vsid_in(word), ea, segment_shift_of(word), base_page(word)) ^ -(slot >> 3)
    return words[at + HTAB] + (found & words[at + GROUP_MASK]) * 128 + (slot & 7) * 16


@step
def is_entry(words: Words, at: int, ram: Words, word: int, ea: int, slot: int) -> bool:
    """Whether ``slot`` has the entry of ``ea``. Every entry looked at is a read."""
    words[at + READS] += 1
    first = read_entry(ram, slot_at(words, at, word, ea, slot), 8, 1)
    return first & ~HPTE_SOFTWARE == wanted(word, ea) | slot >> 3 << 1


@step
def search(words: Words, at: int, ram: Words, word: int, ea: int) -> int:
    """Where the hash table has the entry for ``ea``; -1: nowhere. All are of the segment's base size here."""
    for slot in range(16):
        if is_entry(words, at, ram, word, ea, slot):
            return slot_at(words, at, word, ea, slot)
    return -1


@step
def slot_for(words: Words, at: int, ram: Words, word: int, ea: int) -> int:
    """The slot that a new entry takes: a free one of its primary, else secondary group, else another's."""
    for slot in range(16):
        words[at + READS] += 1
        if read_entry(ram, slot_at(words, at, word, ea, slot), 8, 1) & 1 == 0:
            return slot
    clock = words[at + EVICTED]
    words[at + EVICTED] = clock + 1
    words[at + EVICTIONS] += 1
    return (clock & 1) << 3 | clock >> 1 & 7


@step
def flags_of(pte: int) -> int:
    """The low bits of the second doubleword that Linux makes of a pte.

    PP 2 (user may write) only where the pte is writable and dirty; a clean page is read-only to hardware, so that
    its first store traps. N where the pte is not executable; C is set at once.
    """
    flags = (pte & 0x1FE ^ 0x4) | P_DIRTY
    return flags | 1 if pte & USER and pte & (RW | P_DIRTY) != RW | P_DIRTY else flags


@step
def enter(words: Words, at: int, ram: Words, word: int, ea: int, ptep: int, pte: int) -> bool:
    """Let the hash table say what ``pte`` does, and the pte in memory in which slot; whether one was changed."""
    slot = pte >> 12 & 15
    is_there = pte & words[at + HASHED] != 0 and is_entry(words, at, ram, word, ea, slot)
    if not is_there:
        slot = slot_for(words, at, ram, word, ea)
        pte = pte & ~SLOT | slot << 12 | words[at + HASHED]
    place = slot_at(words, at, word, ea, slot)
    frame = (pte >> words[at + PFN_SHIFT]) << words[at + PAGE_SHIFT] & HPTE_FRAME
    size = 1 << 12 if base_page(word) == 16 else 0  # the size code of 64 KiB; the others have none
    write_entry(ram, place + 8, 8, 1, frame | size | flags_of(pte))
    if not is_there:  # the half that makes it valid comes last
        write_entry(ram, place, 8, 1, wanted(word, ea) | slot >> 3 << 1)
    write_entry(ram, ptep, 8, 1, pte)
    return is_there


# ------------------------------------------------------------------ Linux's tables
@step
def find_pte(state: Words, ram: Words, root: int, ea: int) -> int:
    """The pte for ``ea``, of a huge page too, 0 where a table is missing; FAULT_PLACE says where it is."""
    if ea >> state[MMU + USER_BITS]:
        return 0
    row = MMU + LEVELS
    table = root
    if state[MMU + THREE_LEVELS] and page_shift_at(state, MMU, ea) == HUGE_SHIFT:
        row = MMU + HUGE_TREE
        table = state[MMU + HUGE_ROOT]
    while True:
        nbytes = state[row + 2]
        place = table + (ea >> state[row] & state[row + 1]) * nbytes
        if table < 0 or place + nbytes > state[RAM_BYTES]:
            return 0
        entry = read_entry(ram, place, nbytes, 1)
        state[MMU + READS] += 1
        state[FAULT_PLACE] = place
        state[FAULT_ENTRY] = entry
        if entry == 0 or state[row + 3] == 0:
            return entry
        row += 4
        if nbytes == 4:  # 2.6.12: the table's frame number
            table = entry << 12
        elif entry < 0:  # kernel address
            table = entry & TABLE_ADDRESS
        else:  # a hugepd: kernel address without its top bit, and the page's size
            table = entry & HUGEPD_ADDRESS
            row = MMU + HUGE_PTES


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
def hash_page(state: Words, ram: Words, ea: int, access: int, word: int) -> int:
    """The hash fault handler: 0 once the hash table has the page, else why it is a page fault."""
    pte = find_pte(state, ram, state[ROOT], ea)
    fault = refusal(pte, access)
    if fault == 0:
        pte |= ACCESSED | P_DIRTY if access == STORE else ACCESSED
        enter(state, MMU, ram, word, ea, state[FAULT_PLACE], pte)
    return fault


@step
def peek(state: Words, ram: Words, ea: int, access: int) -> int:
    """What Linux's tables say."""
    root = state[WALK_ROOT]
    pte = find_pte(state, ram, state[ROOT] if root < 0 else root, ea)
    fault = refusal(pte, access)
    if fault:
        return fault
    info = rights(pte & USER and 1, pte & RW and 1, pte & EXEC and 1)
    frame = (pte >> state[MMU + PFN_SHIFT]) << state[MMU + PAGE_SHIFT] & HPTE_FRAME
    return give(state, frame, page_shift_at(state, MMU, ea), info | DIRTY if pte & P_DIRTY else info, 0)


# ------------------------------------------------------------------ what is called
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
    word = find_segment(state, va)
    fault = 0
    for is_retry in range(2):  # a handler that changes nothing would be called for ever
        place = search(state, MMU, ram, word, va)
        second = read_entry(ram, place + 8, 8, 1) if place >= 0 else 0
        protection = second & 3 if place >= 0 else 0
        may = rights(protection != 0, protection == 2, second & 0xC == 0)
        if may >> (USER_RIGHTS + access) & 1:
            reads = state[MMU + READS]
            if protection == 3 and find_pte(state, ram, state[ROOT], va) & RW:
                # A clean page: the TLB entry is to ask again at its first store, as the trap would. No part of the
                # machine looks at the pte for that, so it is not counted.
                may = may | 4 << SUPERVISOR_RIGHTS | 4 << USER_RIGHTS
            state[MMU + READS] = reads
            page = base_page(word)
            may = may | DIRTY if protection == 2 else may
            fault = give(state, second & HPTE_FRAME & -(1 << page), page, may, 0)
            break
        fault = NO_PERMISSION
        if not is_retry:
            state[HASH_FAULT] += 1
            fault = hash_page(state, ram, va, access, word)
            if fault:
                break
    state[REFERENCES] += state[MMU + READS]
    state[EVICTION] += state[MMU + EVICTIONS]
    state[MMU + EVICTIONS] = 0
    return fault


@kernel
def preload(words: Words, ram: Words, context: int, ea: int, ptep: int, n: int, page: int) -> int:
    """Enter a run of young ptes into the hash table; how many entries were changed, not made."""
    changed = 0
    for k in range(n):
        pte = read_entry(ram, ptep + 8 * k, 8, 1)
        if ~pte & (PRESENT | USER | ACCESSED) == 0:
            address = ea + (k << page)
            word = segment_word(words, 0, context, address, page)
            changed += enter(words, 0, ram, word, address, ptep + 8 * k, pte)
    return changed


@kernel
def drop_hptes(words: Words, ram: Words, context: int, addresses: Words, ptes: Words, page: int) -> None:
    """Make the entries invalid that a batch of old ptes remembers, where they still are."""
    for k in range(addresses.size):
        word = segment_word(words, 0, context, addresses[k], page)
        slot = ptes[k] >> 12 & 15
        if is_entry(words, 0, ram, word, addresses[k], slot):
            write_entry(ram, slot_at(words, 0, word, addresses[k], slot), 8, 1, 0)
