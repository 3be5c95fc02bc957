"""Random page tables translate as on the Unicorn engine: same bytes reached, same refusals, three x86 modes.

The engine gets the tables' bytes and makes one load, store or fetch per question, as user or supervisor,
with its caches flushed before. Compared: whether it faults, the error code's page address, and which bytes
of memory it reached.
"""

from __future__ import annotations

import ctypes
import random
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.hardware.entry import Access, Privilege, WalkFault
from polymmu.hardware.ram import Ram
from polymmu.hardware.walk import RadixTranslation, walk
from tests.hardware.x86_formats import MIB, four_level, pae, two_level

unicorn: Any = pytest.importorskip("unicorn")
x86: Any = pytest.importorskip("unicorn.x86_const")

MEMORY = 16 * MIB
CODE = 0x1000  # where the probing instruction is, at the same virtual address in every mode
ROOT = 0x10000
FIXED = (0x11000, 0x12000, 0x13000)  # tables that map the code
POOL = tuple(range(0x14000, 0x1C000, 0x1000))  # tables with random entries
END_OF_TABLES = 0x20000
TABLE = 0x67
MODES: dict[str, RadixTranslation] = {"2-level": two_level(), "pae": pae(40), "4-level": four_level(40)}
EFER = 0xC0000080


def marked_memory() -> ctypes.Array[ctypes.c_char]:
    """Memory whose every 16 bytes say where they are: ``mov eax, number`` and padding."""
    marks = b"".join(b"\xb8" + n.to_bytes(4, "little") + b"\x90" * 11 for n in range(MEMORY // 16))
    return ctypes.create_string_buffer(marks, MEMORY)


BUFFER = marked_memory()


def new_engine(mode: str, write_protect: bool) -> Any:
    """A fresh engine over ``BUFFER`` with paging on: nothing is left of an earlier question."""
    wide = mode == "4-level"
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64 if wide else unicorn.UC_MODE_32)
    uc.ctl_set_tlb_mode(unicorn.UC_TLB_CPU)
    uc.mem_map_ptr(0, MEMORY, unicorn.UC_PROT_ALL, ctypes.addressof(BUFFER))
    uc.reg_write(x86.UC_X86_REG_MSR, (EFER, 0xD00 if wide else 0x800))
    uc.reg_write(x86.UC_X86_REG_CR4, 0x10 if mode == "2-level" else 0x30)
    uc.reg_write(x86.UC_X86_REG_CR3, ROOT)
    uc.reg_write(x86.UC_X86_REG_CR0, 0x80010001 if write_protect else 0x80000001)
    return uc


def entry_at(rng: random.Random, mode: str, level: int, levels: int) -> int:
    """A random entry, mostly one that leads on."""
    if rng.random() < 0.1:
        return rng.getrandbits(32) & ~1
    flags = 0x21 if mode == "pae" and level == 0 else TABLE
    if mode != "pae" or level:
        for bit in (1, 2, 5, 6):
            if rng.random() < 0.15:
                flags &= ~(1 << bit)
    else:
        flags = 1
    last = level == levels - 1
    span = {"2-level": 22, "pae": 21, "4-level": {1: 30, 2: 21}.get(level, 0)}[mode]
    can_be_large = not last and span and not (mode == "pae" and level == 0)
    if can_be_large and rng.random() < 0.25:
        address = (rng.randrange(MEMORY) >> span << span) | 0x80
        address |= rng.choice((0, 0, 0, 1 << 21 if mode == "2-level" else 1 << 13))
    elif last:
        address = rng.randrange(END_OF_TABLES, MEMORY) & ~0xFFF
    else:
        address = rng.choice(POOL)
    entry = address | flags
    if mode != "2-level":
        if level or mode == "4-level":
            entry |= (rng.random() < 0.15) << 63
            entry |= (rng.random() < 0.04) << 45  # above the engine's 40 physical bits
        if mode == "4-level" and level == 0:
            entry |= (rng.random() < 0.04) << 7
    return entry


def random_tables(rng: random.Random, mode: str) -> dict[int, int]:
    """{physical address: entry}: half of the pool's places filled, the code mapped for everybody."""
    translation = MODES[mode]
    layout = translation.layout
    entries: dict[int, int] = {}
    tables: list[tuple[int, int]] = [(0, ROOT)]
    # Each level owns its share of the pool, so that an entry's kind fits where it stands.
    for level in range(1, layout.levels):
        tables += [(level, table) for table in POOL]
    for level, table in tables:
        size = layout.entry_bytes[level]
        for index in rng.sample(range(layout.entries_of(level)), min(64, layout.entries_of(level))):
            entries[table + index * size] = entry_at(rng, mode, level, layout.levels)
    table = ROOT
    for level in range(layout.levels):
        place = layout.entry_address(level, table, CODE)
        last = level == layout.pte_level
        target = CODE if last else FIXED[level]
        entries[place] = target | (1 if mode == "pae" and level == 0 else TABLE)
        table = target
    return entries


def question(rng: random.Random, mode: str, entries: dict[int, int]) -> int:
    """An address whose every index is likely to be filled; 16-byte aligned."""
    layout = MODES[mode].layout
    va, table = 0, ROOT
    for level in range(layout.levels):
        size = layout.entry_bytes[level]
        filled = [
            (place - table) // size
            for place in entries
            if table <= place < table + (size << layout.index_bits[level]) and (level or place - table)
        ]
        index = (
            rng.choice(filled) if filled and rng.random() < 0.95 else rng.randrange(layout.entries_of(level))
        )
        va |= index << layout.shift_of(level)
        table = entries.get(table + index * size, 0) & 0xFFFFF000
    if mode == "4-level" and va >> 47:
        va |= 0xFFFF << 48
    return va | rng.randrange(4096) & ~0xF


def engine_answer(mode: str, va: int, access: Access, write_protect: bool) -> int | None:
    """What one access reaches: the number of the 16 bytes it read or executed, -1 for a store; None: a fault."""
    uc = new_engine(mode, write_protect)
    wide = mode == "4-level"
    base, result = ("RBX", "RAX") if wide else ("EBX", "EAX")
    uc.reg_write(getattr(x86, f"UC_X86_REG_{base}"), va)
    load = b"\x8b\x43\x01"  # mov eax, [ebx + 1]
    store = b"\x89\x43\x08"  # mov [ebx + 8], eax: zeroes, where a mark has only padding
    uc.mem_write(CODE, store if access == Access.STORE else load)
    try:
        if access == Access.FETCH:
            uc.emu_start(va, va + 5, count=1)
        else:
            uc.emu_start(CODE, CODE + 3, count=1)
    except unicorn.UcError as error:
        assert error.errno == unicorn.UC_ERR_EXCEPTION
        return None
    if access == Access.STORE:
        return -1
    return int(uc.reg_read(getattr(x86, f"UC_X86_REG_{result}"))) & 0xFFFFFFFF


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 32))
def test_random_tables_translate_as_on_the_engine(mode: str, seed: int) -> None:
    rng = random.Random(seed)
    entries = random_tables(rng, mode)
    strict = MODES[mode]
    lenient = attrs.evolve(strict, supervisor_writes_read_only=True)
    ram = Ram(MEMORY)
    size = strict.layout.entry_bytes[0]
    for place, entry in entries.items():
        ram.write_entry(place, size, "little", entry & ((1 << 8 * size) - 1))
    tables = ram.read(ROOT, END_OF_TABLES - ROOT)
    for _ in range(20):
        va = question(rng, mode, entries)
        access = rng.choice(list(Access))
        write_protect = rng.random() < 0.7
        found = walk(ram, strict if write_protect else lenient, ROOT, va, access, Privilege.SUPERVISOR)
        assert found.fault != WalkFault.TABLE_UNREADABLE
        if found.pa is not None and not END_OF_TABLES <= found.pa < MEMORY:
            continue  # the probe would meet a table, its own code, or no memory
        ctypes.memmove(ctypes.addressof(BUFFER) + ROOT, tables, len(tables))
        if access == Access.STORE and found.pa is not None:
            mark = ctypes.addressof(BUFFER) + found.pa + 8
            before = ctypes.string_at(mark, 4)
            assert engine_answer(mode, va, access, write_protect) == -1, found
            assert ctypes.string_at(mark, 4) == bytes(4)
            ctypes.memmove(mark, before, 4)
        else:
            expected = None if found.pa is None else found.pa // 16
            assert engine_answer(mode, va, access, write_protect) == expected, (access, found)
