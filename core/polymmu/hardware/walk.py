"""A radix MMU as data, and the walk in plain Python.

``RadixTranslation`` says everything about one MMU that a walk needs: how addresses split, what the bits of
each level mean, what a fault is called. ``walk`` follows the tables in Python, showing every step; it
changes nothing. The compiled walker of ``walk_kernels`` does the same on behalf of a CPU, with accessed and
dirty bits; tests hold the two together.

A hashed or software-filled MMU is not bent into this shape: it implements ``Translation`` itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import attrs
import numpy as np
import numpy.typing as npt

from polymmu.errors import PolymmuError
from polymmu.hardware import state as at
from polymmu.hardware.entry import Access, EntryFormat, Field, Privilege, WalkFault
from polymmu.hardware.layout import RadixLayout

__all__ = ["BadRoot", "EntryReader", "RadixTranslation", "Translation", "Walk", "walk", "walk_many"]

FaultCodes = Mapping[tuple[WalkFault, Access, Privilege], int]


class BadRoot(PolymmuError):
    """A value the root register refuses (x86: general protection at the load of CR3)."""


class EntryReader(Protocol):
    """Memory that tables are read from; ``Ram`` is one."""

    size: int

    def read_entry(self, pa: int, nbytes: int, order: str) -> int:
        """The entry of ``nbytes`` bytes at ``pa``."""
        ...


class Translation(Protocol):
    """What a CPU asks of its MMU, whatever its shape."""

    @property
    def page_shift(self) -> int:
        """Log2 of the base page."""
        ...

    @property
    def page_shifts(self) -> tuple[int, ...]:
        """Log2 of every page size, ascending."""
        ...

    @property
    def looks_ahead(self) -> bool:
        """Whether a fault handler may map pages ahead of their first touch, every count staying as if each had
        faulted by itself: the miss routine knows ``STOP_AT``, and nothing but the tables remembers an address."""
        ...

    @property
    def event_costs(self) -> Mapping[str, int]:
        """What the miss routine counts beyond walks and references, and the cycles of each; by name, in the order
        of the state's ``EVENTS``."""
        ...

    @property
    def path_steps(self) -> tuple[tuple[str, int], ...]:
        """For each level in a ``Walk``'s path: its name, and the bytes read there."""
        ...

    def table_shifts(self) -> Mapping[int, tuple[int, int]]:
        """For a paging-structure cache of level n (1: the lowest): (table level, log2 of what an entry covers)."""
        ...

    def install(self, words: npt.NDArray[np.int64]) -> None:
        """Write the MMU's facts into a CPU's state, and the miss routine's address."""
        ...

    def latch_root(self, ram: EntryReader, root: int) -> tuple[int, ...]:
        """Check a root and return the entries that loading it copies into registers."""
        ...

    def walk(
        self,
        ram: EntryReader,
        root: int,
        va: int,
        access: Access | None = None,
        privilege: Privilege = Privilege.SUPERVISOR,
        asid: int = 0,
    ) -> Walk:
        """Translate ``va`` from ``root``, in plain Python, showing every step and changing nothing.

        ``access`` None asks only what is mapped, not whether anyone may use it.
        """
        ...


@attrs.frozen(kw_only=True)
class RadixTranslation:
    """One radix MMU.

    ``formats``: one per level, root first. ``canonical``: ``sign`` if unused high address bits must equal
    the highest used one, ``none`` if they must be zero. ``fault_codes``: the architecture's code for each
    fault; missing ones are 0. ``supervisor_writes_read_only``: x86 with CR0.WP clear. ``refused_on_user``:
    what a supervisor may not do with a user's page (x86 SMEP and SMAP, RISC-V without SUM). ``root_registers``: how
    many top entries loading the root copies into registers (PAE: 4); they grant everything and have no
    accessed bit. ``sets_accessed_dirty``: hardware sets these bits; otherwise a clear one faults.
    ``fault_drops``: a fault drops what is cached for its address (Intel SDM vol. 3A 4.10.4.1).
    """

    layout: RadixLayout
    formats: tuple[EntryFormat, ...]
    byte_order: str = attrs.field(default="little", validator=attrs.validators.in_(("little", "big")))
    canonical: str = attrs.field(default="none", validator=attrs.validators.in_(("none", "sign")))
    fault_codes: FaultCodes = attrs.field(factory=dict)
    supervisor_writes_read_only: bool = False
    refused_on_user: frozenset[Access] = frozenset()
    root_registers: int = 0
    sets_accessed_dirty: bool = True
    fault_drops: bool = True

    def __attrs_post_init__(self) -> None:
        if len(self.formats) != self.layout.levels:
            raise ValueError("a translation needs one entry format per level")
        if self.layout.regions:
            raise ValueError("a radix walker knows no regions")
        if self.layout.levels > at.MAX_LEVELS or self.root_registers > at.NR_ROOT_ENTRIES - at.ROOT_ENTRIES:
            raise ValueError(f"at most {at.MAX_LEVELS} levels and 8 root registers")
        if any(len(form.malformed) > at.MAX_PAIRS for form in self.formats):
            raise ValueError(f"at most {at.MAX_PAIRS} malformed patterns per level")

    @property
    def page_shift(self) -> int:
        """Log2 of the base page."""
        return self.layout.page_shift

    @property
    def looks_ahead(self) -> bool:
        """The tables are all there is."""
        return True

    @property
    def event_costs(self) -> dict[str, int]:
        """A walk has no events of its own."""
        return {}

    @property
    def path_steps(self) -> tuple[tuple[str, int], ...]:
        """The levels."""
        return tuple(zip(self.layout.names, self.layout.entry_bytes, strict=True))

    def walk(
        self,
        ram: EntryReader,
        root: int,
        va: int,
        access: Access | None = None,
        privilege: Privilege = Privilege.SUPERVISOR,
        asid: int = 0,
    ) -> Walk:
        """See ``Translation.walk``."""
        return walk(ram, self, root, va, access, privilege)

    @property
    def page_shifts(self) -> tuple[int, ...]:
        """Log2 of every page size, ascending."""
        return tuple(sorted(self.layout.shift_of(level) for level in self.layout.leaf_levels))

    def table_shifts(self) -> dict[int, tuple[int, int]]:
        """Which table level a paging-structure cache of level n holds, and log2 of what an entry covers."""
        first = 1 if self.root_registers else 0
        return {
            self.layout.pte_level - level: (level, self.layout.shift_of(level))
            for level in range(first, self.layout.pte_level)
        }

    def code(self, fault: WalkFault, access: Access, privilege: Privilege) -> int:
        """The architecture's code for a fault."""
        return self.fault_codes.get((fault, access, privilege), 0)

    def is_canonical(self, va: int) -> bool:
        """Whether the MMU translates ``va`` (64 bits, unsigned) at all."""
        bits = self.layout.va_bits
        if self.canonical == "none" or bits >= 64:
            return va >> bits == 0
        return va >> (bits - 1) in (0, (1 << (65 - bits)) - 1)

    def can_be_leaf(self, level: int, entry: int) -> bool:
        """Whether a present ``entry`` of ``level`` maps a page."""
        return level == self.layout.pte_level or bool(entry & self._leaf_mask(level))

    def _leaf_mask(self, level: int) -> int:
        return self.formats[level].leaf_mask if level in self.layout.leaf_levels else 0

    def _judged_mask(self, level: int) -> int:
        """The bits of a leaf on which anything but its page's address depends."""
        form = self.formats[level]
        shift = self.layout.shift_of(level)
        low = (1 << max(0, shift - form.address_shift)) - 1
        high = (1 << max(0, shift - form.high_frame_shift)) - 1
        judged = ~(form.frame_mask & ~low | form.high_frame_mask & ~high)
        for mask, _ in form.malformed:
            judged |= mask
        return judged & (1 << 64) - 1

    def is_malformed(self, level: int, entry: int) -> bool:
        """Whether a present entry has a bit set that must be clear, or a refused pattern."""
        form = self.formats[level]
        reserved = form.reserved_leaf if self.can_be_leaf(level, entry) else form.reserved_table
        return bool(entry & reserved) or any(entry & mask == value for mask, value in form.malformed)

    def latch_root(self, ram: EntryReader, root: int) -> tuple[int, ...]:
        """The entries that loading ``root`` copies into registers; BadRoot if it cannot be loaded."""
        nbytes = self.layout.entry_bytes[0]
        if self.root_registers and not 0 <= root <= ram.size - self.root_registers * nbytes:
            raise BadRoot(f"root {root:#x}: no memory there")
        entries = tuple(
            ram.read_entry(root + n * nbytes, nbytes, self.byte_order) for n in range(self.root_registers)
        )
        for n, entry in enumerate(entries):
            if self.formats[0].present.test(entry) and self.is_malformed(0, entry):
                raise BadRoot(f"root {root:#x}: entry {n} is {entry:#x}, which has a reserved bit set")
        return entries

    def install(self, words: npt.NDArray[np.int64]) -> None:
        """Write this MMU's facts into a CPU's state. ``words[SIZES]`` must be there already."""
        from polymmu.hardware.compile import address_of
        from polymmu.hardware.walk_kernels import radix_miss

        layout = self.layout
        for (fault, access, privilege), code in self.fault_codes.items():
            words[at.CODES + (fault * 3 + access) * 2 + privilege] = code
        words[at.LEVELS] = layout.levels
        words[at.BASE_SHIFT] = layout.page_shift
        words[at.CANONICAL_SIGN] = self.canonical == "sign"
        words[at.VA_BITS] = layout.va_bits
        words[at.BIG_ENDIAN] = self.byte_order == "big"
        words[at.SUPERVISOR_WRITES] = self.supervisor_writes_read_only
        words[at.REFUSED_ON_USER] = sum(1 << access for access in self.refused_on_user)
        words[at.SETS_AD] = self.sets_accessed_dirty
        words[at.FAULT_DROPS] = -1 if self.fault_drops else 0
        words[at.NR_ROOT_ENTRIES] = self.root_registers
        sizes = words[at.SIZES : at.SIZES + words[at.NR_SIZES]].tolist()
        for level, form in enumerate(self.formats):
            row = at.ROWS + level * at.ROW
            is_leaf_level = level in layout.leaf_levels
            facts: dict[int, int] = {
                at.R_SHIFT: layout.shift_of(level),
                at.R_INDEX: layout.entries_of(level) - 1,
                at.R_BYTES: layout.entry_bytes[level],
                at.R_LEAF: self._leaf_mask(level),
                at.R_LAST: int(level == layout.pte_level),
                at.R_TABLE: form.table_mask,
                at.R_FRAME: form.frame_mask,
                at.R_RESERVED_TABLE: form.reserved_table,
                at.R_RESERVED_LEAF: form.reserved_leaf,
                at.R_HIGH: form.high_frame_mask,
                at.R_HIGH_SHIFT: form.high_frame_shift,
                at.R_ADDRESS_SHIFT: form.address_shift,
                at.R_ORDINAL: sizes.index(layout.shift_of(level)) if is_leaf_level else 0,
                at.R_MALFORMED: len(form.malformed),
                at.R_JUDGED: self._judged_mask(level),
                at.R_LEAVES_ALONE: int(form.leaves_alone),
            }
            properties: dict[int, Field | None] = {
                at.R_PRESENT_M: form.present,
                at.R_READ_M: form.read,
                at.R_WRITE_M: form.write,
                at.R_USER_M: form.user,
                at.R_EXECUTE_M: form.execute,
                at.R_ACCESSED_M: form.accessed,
                at.R_DIRTY_M: form.dirty,
                at.R_GLOBAL_M: form.global_,
            }
            for place, prop in properties.items():
                facts[place] = prop.mask if prop else 0
                facts[place + 1] = prop.on if prop else 0
            for n, pair in enumerate(form.malformed):
                facts[at.R_PAIRS + 2 * n], facts[at.R_PAIRS + 2 * n + 1] = pair
            for place, value in facts.items():
                words[row + place] = signed(value)
        words[at.MISS_ADDRESS] = address_of(radix_miss)
        words[at.IS_RADIX] = 1


def signed(value: int) -> int:
    """A 64-bit pattern as the signed number that a state word holds."""
    return value - (1 << 64) if value >> 63 else value


def needs(privilege: Privilege) -> tuple[int, int, int, int]:
    """INFO bits that a fetch, load, store and modify at ``privilege`` need."""
    first = at.USER_RIGHTS if privilege == Privilege.USER else at.SUPERVISOR_RIGHTS
    fetch, load, store = (1 << (first + access) for access in Access)
    return fetch, load, store | at.DIRTY, load | store | at.DIRTY


@attrs.frozen(kw_only=True)
class Walk:
    """What a walk found. ``pa`` is None exactly where ``fault`` is not NONE.

    ``path``: (level, physical address of the entry, entry) for each entry read. ``page_size`` in bytes and
    the combined rights are known once a leaf was reached, also where the access asked for is refused.
    ``accessed``, ``dirty``, ``is_global``: None where a leaf has no such bit.
    """

    va: int
    pa: int | None = None
    page_size: int = 0
    fault: WalkFault = WalkFault.NONE
    code: int = 0
    path: tuple[tuple[int, int, int], ...] = ()
    readable: bool = False
    writable: bool = False
    executable: bool = False
    user: bool = False
    accessed: bool | None = None
    dirty: bool | None = None
    is_global: bool | None = None


def walk(
    ram: EntryReader,
    translation: RadixTranslation,
    root: int,
    va: int,
    access: Access | None = Access.LOAD,
    privilege: Privilege = Privilege.SUPERVISOR,
) -> Walk:
    """Translate ``va`` under the tables at ``root``, changing nothing.

    The rights asked for are those of ``access`` (None: no right) at ``privilege``; a page that an MMU leaves to
    software to mark accessed or dirty faults with NOT_ACCESSED.
    """
    layout, order = translation.layout, translation.byte_order
    path: list[tuple[int, int, int]] = []
    found: dict[str, Any] = {}

    def refused(fault: WalkFault) -> Walk:
        code = translation.code(fault, Access.LOAD if access is None else access, privilege)
        return Walk(va=va, fault=fault, code=code, path=tuple(path), **found)

    if not translation.is_canonical(va):
        return refused(WalkFault.NON_CANONICAL)
    read = write = user = execute = True
    table = root
    level, entry, form = 0, 0, translation.formats[0]
    for level, form in enumerate(translation.formats):
        place = layout.entry_address(level, table, va)
        nbytes = layout.entry_bytes[level]
        if place + nbytes > ram.size:
            return refused(WalkFault.TABLE_UNREADABLE)
        entry = ram.read_entry(place, nbytes, order)
        path.append((level, place, entry))
        if not form.present.test(entry):
            return refused(WalkFault.NOT_PRESENT)
        if translation.is_malformed(level, entry):
            return refused(WalkFault.RESERVED_BIT)
        is_leaf = translation.can_be_leaf(level, entry)
        if is_leaf or not form.leaves_alone:
            read &= form.read.test(entry)
            write &= form.write.test(entry)
            user &= form.user.test(entry)
            execute &= form.execute.test(entry)
        if is_leaf:
            break
        table = (entry & form.table_mask) << form.address_shift
    size = layout.span_of(level)
    frame = form.frame_of(entry)
    found = {
        "page_size": size,
        "readable": read,
        "writable": write,
        "executable": execute,
        "user": user,
        "accessed": None if form.accessed is None else form.accessed.test(entry),
        "dirty": None if form.dirty is None else form.dirty.test(entry),
        "is_global": None if form.global_ is None else form.global_.test(entry),
    }
    if frame % size:
        return refused(WalkFault.MISALIGNED)
    if access is None:
        return Walk(va=va, pa=frame + va % size, path=tuple(path), **found)
    may_write = write or (privilege == Privilege.SUPERVISOR and translation.supervisor_writes_read_only)
    allowed = {Access.FETCH: execute, Access.LOAD: read, Access.STORE: may_write}[access]
    if privilege == Privilege.USER:
        allowed &= user
    elif user:
        allowed &= access not in translation.refused_on_user
    if not allowed:
        return refused(WalkFault.NO_PERMISSION)
    if not translation.sets_accessed_dirty:
        is_old = form.accessed is not None and not form.accessed.test(entry)
        is_clean = form.dirty is not None and not form.dirty.test(entry)
        if is_old or (access == Access.STORE and is_clean):
            return refused(WalkFault.NOT_ACCESSED)
    return Walk(va=va, pa=frame + va % size, path=tuple(path), **found)


def walk_many(
    words: npt.NDArray[np.int64],
    translation: RadixTranslation,
    root: int,
    vas: npt.NDArray[np.uint64],
    access: Access = Access.LOAD,
    privilege: Privilege = Privilege.SUPERVISOR,
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """``walk`` for an array of addresses, compiled.

    ``words``: physical memory as int64 (``Ram.words``). Returns physical addresses (all ones where there
    is none), page sizes in bytes (0 likewise) and ``WalkFault`` values.
    """
    from polymmu.hardware.walk_kernels import peek_many

    state = np.zeros(at.DESCRIPTORS, dtype=np.int64)
    shifts = translation.page_shifts
    state[at.NR_SIZES] = len(shifts)
    state[at.SIZES : at.SIZES + len(shifts)] = shifts
    translation.install(state)
    state[at.NEED : at.NEED + 4] = needs(privilege)
    state[at.RAM_BYTES] = words.size * 8
    state[at.WALK_ROOT] = root
    addresses = np.ascontiguousarray(vas, dtype=np.uint64)
    pas = np.empty(addresses.size, dtype=np.int64)
    sizes = np.empty(addresses.size, dtype=np.int64)
    faults = np.empty(addresses.size, dtype=np.uint8)
    peek_many(addresses.view(np.int64), int(access), state, words, pas, sizes, faults)
    return pas.view(np.uint64), sizes, faults
