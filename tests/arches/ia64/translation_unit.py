"""The translation unit of an Itanium processor in plain Python: every operation on it, and every fault it raises.

Two pairs of buffers (translation cache and translation registers, for data and for instructions), eight region
registers, sixteen protection keys, and the walker of the VHPT, short and long format. Entries are copies, found by
region identifier and page; a translation that is not present is held like any other. A machine's CPU is not made of
this: the plugin compiles the few rules it needs, and Linux's handlers besides, from the same functions
(``polymmu_ia64.entries``). Here the rules are whole, so that they can be held against a simulator's answers.

Where the manual leaves a choice this does as HP's simulator Ski: references compare the region number with that of
the insertion, the other side's entries stay, the long format's hash is the page number xor the region identifier.

Source: Intel Itanium Architecture SDM rev. 2.3 vol. 2 ch. 4. Not modelled: debug and alignment faults, the register
stack engine, speculation, a semaphore on uncacheable memory.

First reading: ``TranslationUnit.reference``, ``_walk``.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from polymmu_ia64.entries import (
    DATA_ACCESS_BIT,
    DATA_RIGHTS,
    DATA_TLB,
    GENERAL_EXCEPTION,
    INSERTABLE,
    INSIDE,
    INSTRUCTION_RIGHTS,
    INSTRUCTION_TLB,
    MA_SHIFT,
    NAT_CONSUMPTION,
    PPN,
    REGION_SHIFT,
    A,
    P,
    R,
    W,
    X,
    is_implemented,
    is_reserved,
    refusal,
    rights_of,
    vhpt_address,
)

VHPT_TRANSLATION, ALT_INSTRUCTION_TLB, ALT_DATA_TLB, DATA_NESTED_TLB = 0x0000, 0x0C00, 0x1000, 0x1400
INSTRUCTION_KEY_MISS, DATA_KEY_MISS, INSTRUCTION_ACCESS_BIT, KEY_PERMISSION = 0x1800, 0x1C00, 0x2400, 0x5100
PSR_IC, PSR_PK, PSR_DT, PSR_IT, PSR_DA, PSR_IA = (1 << bit for bit in (13, 15, 17, 36, 38, 45))
ISR_X, ISR_W, ISR_R, ISR_NA, ISR_NI = (1 << bit for bit in (32, 33, 34, 35, 39))
PTA_LONG = 1 << 8
INVALID_TAG = 1 << 63
RESERVED_FIELD = 0x30  # ISR.code, of an unimplemented data address too
NAT_CODE = 0x20

FETCH_VECTORS = {
    DATA_KEY_MISS: INSTRUCTION_KEY_MISS,
    DATA_RIGHTS: INSTRUCTION_RIGHTS,
    DATA_ACCESS_BIT: INSTRUCTION_ACCESS_BIT,
    DATA_TLB: INSTRUCTION_TLB,
    ALT_DATA_TLB: ALT_INSTRUCTION_TLB,
}
NO_ITIR = (GENERAL_EXCEPTION, NAT_CONSUMPTION)


class Fault(Exception):
    """A fault and what it left in the control registers; None where it left them alone."""

    def __init__(
        self, vector: int, ifa: int | None, itir: int | None, iha: int | None, isr: int | None
    ) -> None:
        super().__init__(f"vector {vector:#06x}")
        self.vector, self.ifa, self.itir, self.iha, self.isr = vector, ifa, itir, iha, isr


class MachineCheck(Exception):
    """An insertion or purge met a translation register."""


@attrs.frozen
class Entry:
    """A translation: [start, start + 2**page_shift) of the space ``rid``, inserted through region ``region``."""

    rid: int
    region: int
    start: int
    page_shift: int
    pte: int
    key: int

    def overlaps(self, rid: int, start: int, page_shift: int) -> bool:
        """Whether it has an address in common with an aligned range of the same space; regions do not count."""
        larger = max(self.page_shift, page_shift)
        return self.rid == rid and self.start >> larger == start >> larger

    def physical(self, va: int) -> int:
        """Where ``va``, which it translates, is."""
        inside = (1 << self.page_shift) - 1
        return self.pte & PPN & ~inside | va & inside


@attrs.define
class Side:
    """One side's buffers: for data, or for instructions."""

    cache: list[Entry] = attrs.field(factory=list)
    registers: dict[int, Entry] = attrs.field(factory=dict)

    def find(self, rid: int, va: int) -> Entry | None:
        """The translation a reference to ``va`` uses."""
        region = va >> REGION_SHIFT
        for entry in (*self.registers.values(), *self.cache):
            if entry.region == region and entry.overlaps(rid, va & INSIDE, 0):
                return entry
        return None

    def check(self, rid: int, start: int, page_shift: int) -> None:
        """Raise MachineCheck where a translation register lies in the range."""
        if any(entry.overlaps(rid, start, page_shift) for entry in self.registers.values()):
            raise MachineCheck

    def purge(self, rid: int, start: int, page_shift: int) -> None:
        """Drop whatever of the cache lies in the range, all of each entry."""
        self.cache = [entry for entry in self.cache if not entry.overlaps(rid, start, page_shift)]


@attrs.frozen
class _Request:
    """A reference on its way: what it needs, at which level, and its bits in ISR."""

    va: int
    needs: int
    cpl: int
    isr: int
    is_fetch: bool = False


@attrs.define
class TranslationUnit:
    """One processor's. ``read``: the 8 bytes at a physical address; ``va_bits``: implemented below the region."""

    read: Callable[[int], int]
    va_bits: int = 61
    pa_bits: int = 50
    insertable: int = INSERTABLE
    rr: list[int] = attrs.field(factory=lambda: [0x30] * 8)
    pta: int = 0x3C
    keys: list[int] = attrs.field(factory=lambda: [0] * 16)
    psr: int = 0
    data: Side = attrs.field(factory=Side)
    instructions: Side = attrs.field(factory=Side)

    # ------------------------------------------------------------------ software's operations
    def insert(self, side: Side, ifa: int, itir: int, pte: int, slot: int | None = None) -> None:
        """itc, and itr where a ``slot`` is given; at cpl 0 with PSR.ic clear."""
        if not is_implemented(ifa, self.va_bits) or self._is_refused(pte, itir):
            raise Fault(GENERAL_EXCEPTION, None, None, None, RESERVED_FIELD)
        self._enter(side, ifa, itir >> 2 & 63, itir >> 8 & 0xFFFFFF, pte, slot)

    def purge(self, va: int, page_shift: int) -> None:
        """ptc.l, and ptc.g and ptc.ga as far as this processor goes: 2**page_shift bytes around ``va``."""
        rid = self._rid(va)
        for side in (self.data, self.instructions):
            side.check(rid, va & INSIDE, page_shift)
        for side in (self.data, self.instructions):
            side.purge(rid, va & INSIDE, page_shift)

    def purge_cache(self) -> None:
        """ptc.e: everything but the translation registers."""
        self.data.cache, self.instructions.cache = [], []

    def purge_registers(self, side: Side, va: int, page_shift: int) -> None:
        """ptr: the translation registers of one side that lie in the range."""
        rid = self._rid(va)
        side.registers = {
            slot: entry
            for slot, entry in side.registers.items()
            if not entry.overlaps(rid, va & INSIDE, page_shift)
        }

    def thash(self, va: int) -> int:
        """The address of ``va``'s entry in the VHPT."""
        if not self.pta & PTA_LONG:
            return vhpt_address(va, self._page_shift(va), self.pta, self.va_bits)
        mask = (1 << (self.pta >> 2 & 63)) - 1
        offset = (self._page(va) ^ self._rid(va)) << 5
        return self.pta & ~0x7FFF & ~mask | offset & mask

    def ttag(self, va: int) -> int:
        """The tag that a long-format entry for ``va`` has."""
        return self._page(va) ^ self._rid(va) << 39

    def tpa(self, va: int) -> int:
        """The physical address of ``va``."""
        ask = _Request(va, 0, 0, ISR_NA)
        entry = self._find(ask)
        self._judge(ask, entry, 0, ignores_bits=True)
        return entry.physical(va)

    def probe(self, va: int, needs: int, pl: int) -> bool:
        """Whether a load (R) or store (W) at privilege level ``pl`` would be allowed; A and D do not count."""
        ask = _Request(va, needs, pl, ISR_NA | (ISR_R if needs == R else ISR_W) | 2)
        entry = self._find(ask)
        key_fault = self._key_fault(ask, entry)
        self._judge(ask, entry, key_fault if key_fault != KEY_PERMISSION else 0, ignores_bits=True)
        return not key_fault and not needs & ~rights_of(entry.pte, pl)

    def tak(self, va: int) -> int:
        """The key of ``va``'s translation as ITIR holds it; 1 where there is none, or none present."""
        try:
            entry = self._find(_Request(va, 0, 0, ISR_NA))
        except Fault:
            return 1
        return entry.key << 8 if entry.pte & P else 1

    # ------------------------------------------------------------------ references
    def reference(self, va: int, needs: int, cpl: int) -> int:
        """The physical address that a load (R), store (W), semaphore (both) or fetch (X) goes to."""
        is_fetch = needs == X
        isr = ISR_X if is_fetch else (ISR_R if needs & R else 0) | (ISR_W if needs & W else 0)
        ask = _Request(va & ~15 if is_fetch else va, needs, cpl, isr, is_fetch)
        if not self.psr & (PSR_IT if is_fetch else PSR_DT):
            pa = va & (1 << 63) - 1
            if pa >> self.pa_bits and not is_fetch:
                raise self._fault(ask, GENERAL_EXCEPTION, RESERVED_FIELD)
            return pa
        entry = self._find(ask)
        ignores = bool(self.psr & (PSR_IA if is_fetch else PSR_DA))
        self._judge(ask, entry, self._key_fault(ask, entry), ignores_bits=ignores)
        return entry.physical(va)

    def _find(self, ask: _Request) -> Entry:
        """The translation in the buffers, or the one that the walker brings."""
        if not is_implemented(ask.va, self.va_bits):
            raise self._fault(ask, GENERAL_EXCEPTION, RESERVED_FIELD)
        side = self.instructions if ask.is_fetch else self.data
        return side.find(self._rid(ask.va), ask.va) or self._walk(ask, side)

    def _walk(self, ask: _Request, side: Side) -> Entry:
        """What the VHPT says, which also enters the cache of the side that missed."""
        region = self.rr[ask.va >> REGION_SHIFT]
        modes = PSR_DT | PSR_IC if ask.is_fetch else PSR_DT
        if self.psr & modes != modes or not self.pta & region & 1:
            raise self._miss(ask, ALT_DATA_TLB)
        place = self.thash(ask.va)
        gives_up = self._miss(ask, DATA_TLB, place)
        if not is_implemented(place, self.va_bits):
            raise gives_up
        mapping = self.data.find(self._rid(place), place)
        if mapping is None:
            raise self._miss(ask, VHPT_TRANSLATION, place)
        key = self._key_of(mapping)
        is_usable = mapping.pte & P and mapping.pte & A and not mapping.pte >> MA_SHIFT & 7
        if not is_usable or (self.psr & PSR_PK and (key is None or key & 4)):
            raise gives_up
        pa = mapping.physical(place)
        pte = self.read(pa)
        itir = region & 0xFFFFFFFC
        if self.pta & PTA_LONG:
            itir = self.read(pa + 8)
            if self.read(pa + 16) != self.ttag(ask.va):
                raise gives_up
        if self._is_refused(pte, itir):
            raise gives_up
        return self._enter(side, ask.va, itir >> 2 & 63, itir >> 8 & 0xFFFFFF, pte)

    def _judge(self, ask: _Request, entry: Entry, key_fault: int, *, ignores_bits: bool) -> None:
        """Raise the first fault that the translation gives this request. A probe's rights are its answer."""
        lacks = ask.needs & ~rights_of(entry.pte, ask.cpl) != 0 and not ask.isr & ISR_NA
        vector = refusal(entry.pte, key_fault, lacks, ask.needs & W != 0, ignores_bits)
        if vector:
            raise self._fault(ask, vector, NAT_CODE if vector == NAT_CONSUMPTION else 0)

    # ------------------------------------------------------------------ parts
    def _enter(
        self, side: Side, va: int, page_shift: int, key: int, pte: int, slot: int | None = None
    ) -> Entry:
        start = va & INSIDE & -(1 << page_shift)
        entry = Entry(self._rid(va), va >> REGION_SHIFT, start, page_shift, pte, key)
        side.check(entry.rid, start, page_shift)
        side.purge(entry.rid, start, page_shift)
        if slot is None:
            side.cache.append(entry)
        else:
            side.registers[slot] = entry
        return entry

    def _is_refused(self, pte: int, itir: int) -> bool:
        """Reserved encodings; those of the pte, and ITIR's upper half, count only where it is present."""
        if itir & 3 or not self.insertable >> (itir >> 2 & 63) & 1:
            return True
        return bool(pte & P) and (itir >> 32 != 0 or is_reserved(pte, self.pa_bits))

    def _key_of(self, entry: Entry) -> int | None:
        """The valid protection key register with the entry's key."""
        return next((key for key in self.keys if key & 1 and key >> 8 & 0xFFFFFF == entry.key), None)

    def _key_fault(self, ask: _Request, entry: Entry) -> int:
        if not self.psr & PSR_PK:
            return 0
        key = self._key_of(entry)
        if key is None:
            return DATA_KEY_MISS
        refused = (key & 2 and ask.needs & W) or (key & 4 and ask.needs & R) or (key & 8 and ask.needs & X)
        return KEY_PERMISSION if refused else 0

    def _miss(self, ask: _Request, vector: int, iha: int | None = None) -> Fault:
        if not ask.is_fetch and not self.psr & PSR_IC:
            return Fault(DATA_NESTED_TLB, None, None, None, None)
        return self._fault(ask, vector, 0, iha)

    def _fault(self, ask: _Request, vector: int, code: int, iha: int | None = None) -> Fault:
        """With PSR.ic clear only ISR is written."""
        if ask.is_fetch:
            vector = FETCH_VECTORS.get(vector, vector)
        if not self.psr & PSR_IC:
            return Fault(vector, None, None, None, ask.isr | ISR_NI | code)
        has_ifa, has_itir = vector != GENERAL_EXCEPTION, vector not in NO_ITIR
        region = self.rr[(ask.va if iha is None or vector != VHPT_TRANSLATION else iha) >> REGION_SHIFT]
        return Fault(
            vector,
            ask.va if has_ifa else None,
            region & 0xFFFFFFFC if has_itir else None,
            iha,
            ask.isr | code,
        )

    def _rid(self, va: int) -> int:
        return self.rr[va >> REGION_SHIFT] >> 8 & 0xFFFFFF

    def _page_shift(self, va: int) -> int:
        return self.rr[va >> REGION_SHIFT] >> 2 & 63

    def _page(self, va: int) -> int:
        """The page number that the long format hashes."""
        return (va & (1 << self.va_bits) - 1) >> self._page_shift(va)


__all__ = ["Entry", "Fault", "MachineCheck", "Side", "TranslationUnit"]
