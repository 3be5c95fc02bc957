"""Where everything a CPU's hardware knows lies in one flat array of 64-bit words.

The replay loop reads TLBs, paging-structure caches, the translation's formats and its own counters at
hundreds of millions of accesses a second. Several arrays chosen by a branch would make the compiler count
references on every access (six times slower), so there is one ``int64`` array, and this module is its map:
fixed words first, then rows of fixed length, then the entries, whose places are computed when a CPU is
built (``tlb.py``). Names without a unit are plain words; ``_M``/``_ON`` pairs are a ``Field``'s mask and
value.

First reading: skip everything below "One row per table level".
"""

from __future__ import annotations

# --- how a kernel was left
CLOCK = 0  # ever growing; orders the entries of a set by their last use
STATUS = 1
RESUME = 2  # part of the access to continue with: a page-crossing access has two, a modify twice as many
FAULT_VA = 3
FAULT_CODE = 4
FAULT_KIND = 5  # WalkFault
FAULT_ACCESS = 6
FAULT_PLACE = 7  # physical address of the entry that refused; -1: a TLB entry did
FAULT_ENTRY = 8  # its value when it did
FAULT_WORDS = 9  # [STATUS, FAULT_WORDS) is read in one slice
PA = 9  # where the last access that did not fault went

DONE, FAULT, GROW = 0, 1, 2  # values of STATUS; GROW: the table of touched pages needs room

# --- registers
BASE_SHIFT = 10
ROOT = 11
ASID = 12  # as loaded with the root
SPACE = 13  # identity of the address space, for compulsory misses only
PRIVILEGE = 14
RANDOM = 15  # state of the pseudo-random replacement
MISS_ADDRESS = 16
RAM_BYTES = 17
WALK_ROOT = 18  # root of a walk that only looks (PEEK); -1: the current one, with what it latched

# --- counters
ACCESSES = 19  # three words: fetch, load, store
WALKS = 22
REFERENCES = 23
WALK_CACHE_HITS = 24
AD_UPDATES = 25

# --- what a miss routine answers
OUT_FRAME = 26  # physical address of the page
OUT_SHIFT = 27
OUT_INFO = 28  # rights and DIRTY, as in an entry's INFO
OUT_GLOBAL = 29
OUT_ORDINAL = 30  # of the page's size in SIZES

# --- shape of the TLBs
TLB_LEVELS = 31
NR_TLBS = 32
NR_WALK_CACHES = 33
SEEN_ROOM = 34  # insertions until the table of touched pages must grow
SEEN_MASK = 35  # slots of that table - 1
HIT_BITS = 36  # bits per TLB in the packed hit counter of the replay loop
HAS_PLRU = 37  # some first-level TLB must see every hit
MODIFY_SHORTCUT = 38  # loads and stores look at the same first-level TLBs
FRAGMENTS = 39  # valid entries smaller than the page they come from
NEED = 40  # four words: INFO bits that fetch, load, store, modify need at the current privilege
NR_SIZES = 44
PENDING_HEAD = 45
PENDING_TAIL = 46

# --- the translation
LEVELS = 47
SIZES = 48  # 16 words: log2 of every page size in use, ascending
CODES = 64  # [WalkFault][Access][Privilege], 8 * 3 * 2 words
WALK_CLOCK = 127  # as CLOCK, for the paging-structure caches
ROOT_ENTRIES = 112  # entries latched in registers when the root was loaded
NR_ROOT_ENTRIES = 120
CANONICAL_SIGN = 121  # 1: unused high bits must equal the top used bit; 0: they must be zero
VA_BITS = 122
BIG_ENDIAN = 123
SUPERVISOR_WRITES = 124  # a supervisor's store ignores read-only entries
SETS_AD = 125  # hardware sets accessed and dirty bits; 0: a clear one faults
FAULT_DROPS = 126  # bit per WalkFault: such a fault drops what is cached for its page

# --- scratch of one walk, one word per level
PATH_PLACE = 128
REFUSED_ON_USER = PATH_PLACE + 7  # bits of INFO that a supervisor does not have on a user's page
PATH_ENTRY = 136
PATH_TABLE = 144
PATH_RIGHTS = 152
IS_RADIX = PATH_RIGHTS + 6  # 1: the miss routine is radix_miss, which the replay loops have inlined
MAX_LEVELS = 6
FAULT_LEVEL = PATH_RIGHTS + 7  # where the last walk that faulted stopped

# --- One row per table level
ROWS = 160
ROW = 56
R_SHIFT = 0
R_INDEX = 1  # mask of the index
R_BYTES = 2
R_PRESENT_M, R_PRESENT_ON = 3, 4
R_LEAF = 5  # any bit set: this entry maps a page
R_LAST = 6  # 1: every entry does
R_TABLE = 7
R_FRAME = 8
R_RESERVED_TABLE = 9
R_RESERVED_LEAF = 10
R_READ_M, R_READ_ON = 11, 12
R_WRITE_M, R_WRITE_ON = 13, 14
R_USER_M, R_USER_ON = 15, 16
R_EXECUTE_M, R_EXECUTE_ON = 17, 18
R_ACCESSED_M, R_ACCESSED_ON = 19, 20  # mask 0: this level has no such bit
R_DIRTY_M, R_DIRTY_ON = 21, 22
R_GLOBAL_M, R_GLOBAL_ON = 23, 24
R_HIGH, R_HIGH_SHIFT = 25, 26
R_ADDRESS_SHIFT = 27
R_CACHE = 28  # descriptor of the paging-structure cache that holds this level's entries; 0: none
R_ORDINAL = 29  # of the size an entry of this level maps
R_MALFORMED = 30  # number of (mask, value) pairs that follow
R_PAIRS = 31
MAX_PAIRS = 8
R_JUDGED = R_PAIRS + 2 * MAX_PAIRS  # the bits of a leaf that anything but its page's address depends on
R_KNOWN = R_JUDGED + 1  # these bits of the last leaf that was fine as it is
R_KNOWN_FOR = R_JUDGED + 2  # with what rights above, for what access; 0: nothing known
R_KNOWN_INFO = R_JUDGED + 3
R_KNOWN_GLOBAL = R_JUDGED + 4
R_LEAVES_ALONE = R_JUDGED + 5  # 1: an entry that points to a table grants everything and has no accessed bit

# --- pages handed to a fault handler ahead of their first touch: (page number, level their walk fails at)
PENDING = ROWS + MAX_LEVELS * ROW
MAX_PENDING = 512

# --- where each op found its recent pages, and may use them again without asking
FRONT = PENDING + 2 * MAX_PENDING  # rows by op and low bits of the page number
FRONT_BITS = 7
FRONT_MASK = (1 << FRONT_BITS) - 1
FRONT_ROW = 4
FRONT_WORDS = (4 << FRONT_BITS) * FRONT_ROW
F_START = 0  # the page's first address; of an empty row, one that belongs into another row
F_STAMP = 1  # where the first-level entry that holds it keeps its stamp; above OWNER_SHIFT, its descriptor
F_HITS = 2  # what one access adds to the packed hit counter
F_COUNT = 3  # what it adds to the packed access counter
OWNER_SHIFT = 32
STAMP_MASK = (1 << OWNER_SHIFT) - 1
OTHER_ROW = 1 << (FRONT_BITS - 1)  # from a page number to one that belongs into another row

# --- where to look and what to fill: rows per kind of access (fetch, load, store) and TLB level
MAX_TLB_LEVELS = 4
MAX_PROBES = 128
PROBE_ROWS = FRONT + FRONT_WORDS  # [access][level]: first probe, number of probes
FILLS = PROBE_ROWS + 3 * MAX_TLB_LEVELS * 2  # [access][level][size ordinal]: probe to fill, or -1
QUICK = FILLS + 3 * MAX_TLB_LEVELS * 16  # [access]: TLBs of levels 1 and 2 that quick_kernels knows, or 0
QUICK_WALK = QUICK + 3 * 2  # a cache that it knows, of the entries that lead to the last level, or 0
QUICK_WAYS = 4
LARGE_ENTRIES = QUICK_WALK + 1  # valid TLB entries larger than a base page
# --- what an MMU of its own kind brings (hardware/miss.py)
ASIDS = (
    LARGE_ENTRIES + 1
)  # 8 words: the tag that TLB entries are filled and found with, by the address's top 3 bits
EVENTS = ASIDS + 8  # what the miss routine counts, in the order of Translation.event_costs
MAX_EVENTS = 16
MMU = EVENTS + MAX_EVENTS  # registers and buffers of the MMU's own
MMU_WORDS = 1024
SEEN_ADDRESS = MMU + MMU_WORDS  # host address of the table of touched pages
NOW = SEEN_ADDRESS + 1  # stamp of the access that missed
HAS_SEGMENTS = (
    SEEN_ADDRESS + 2
)  # 1: the miss routine is asked (SEGMENT) before a TLB of level 2 or more is used
PROBES = SEEN_ADDRESS + 3
PROBE = 4
P_CACHE = 0  # descriptor
P_ORDINAL = 1  # of the entry size
P_SHIFT = 2
P_COUNT = 3  # where the descriptor counts entries of this size

# --- one descriptor per TLB, then one per paging-structure cache
DESCRIPTORS = (PROBES + PROBE * MAX_PROBES + 7) // 8 * 8
DESCRIPTOR = 32
D_RECORDS = 0
D_SETS = 1
D_MASK = 2  # sets - 1 if that is a power of two, else -1
D_WAYS = 3
D_POLICY = 4
D_WEIGHT = 5  # one hit in the packed hit counter
D_HOLDS = 6  # bit per kind of access; 0: a paging-structure cache
D_LEVEL = 7  # of the table whose entries a paging-structure cache holds
D_HITS = 8
D_MISSES = 9
D_COMPULSORY = 10
D_EVICTIONS = 11
D_FLUSHED = 12
D_TREES = 13  # one word per set for tree-PLRU
D_STRIDE = 14  # words per set
D_HIT_SHIFT = 15  # where D_WEIGHT's bit is
D_COUNTS = 16  # valid entries by size ordinal

LRU, PLRU, RANDOM_POLICY = 0, 1, 2

# --- one set of a TLB or of a paging-structure cache: these fields, each for all ways, so that a search reads
# neighbouring words. An entry's place is that of its tag; its field F is at place + F * ways.
E_TAG = 0  # address >> size, above TAG_SHIFT; below, TLB: ordinal of the size. -1: invalid
E_STAMP = 1
E_INFO = (
    2  # TLB: frame | ordinal of the real page << 8 | rights; cache: table << RIGHTS_BITS | combined rights
)
E_SPACE = 3  # ASID, or GLOBAL
ENTRY_WORDS = 4
TAG_SHIFT = 4
ORDINAL_MASK = 15
RIGHTS_BITS = 4
GLOBAL = -1

# --- INFO bits. A privilege's three rights are contiguous, in the order of Access.
SUPERVISOR_RIGHTS = 0  # bits 0..2: fetch, load, store
USER_RIGHTS = 3  # bits 3..5
RIGHTS = (1 << 6) - 1
DIRTY = 1 << 6  # a store needs no walk
ABSENT = 1 << 7  # what is cached is that there is no page (it has no rights)
REAL_SHIFT = 8
REAL_MASK = 15 << REAL_SHIFT
FLAG_BITS = (1 << 12) - 1
ADDRESS_BITS = ~FLAG_BITS

# --- combined rights on the way down
READ, WRITE, USER, EXECUTE = 1, 2, 4, 8

# --- modes of a miss routine: STOP_AT + level pretends that the entry there is absent
WALK, PEEK, STOP_AT = 0, 1, 2
SEGMENT = -1

# --- table of touched pages: a slot for each 64 neighbouring pages of one size and address space
SEEN_KEY = 0  # page number / 64, size ordinal; -1: free
SEEN_SPACE = 1
SEEN_BITS = 2  # per TLB a word with a bit per page
HASH_PAGE = 0x2545F4914F6CDD1D
HASH_SPACE = 0x1D8E4E27C47D124F
