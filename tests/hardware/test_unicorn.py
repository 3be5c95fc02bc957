"""Random page tables translate as on the Unicorn engine: same bytes reached, same refusals, three x86 modes.

The engine gets the tables' bytes and makes one load, store or fetch per question, as user or supervisor,
with its caches flushed before. Compared: whether it faults, the error code's page address, and which bytes
of memory it reached.
"""

from __future__ import annotations

import random
from typing import Any

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
MODES: dict[str, tuple[RadixTranslation, RadixTranslation]] = {
    "2-level": (two_level(), two_level(wp=False)),
    "pae": (pae(40), pae(40)),
    "4-level": (four_level(40), four_level(40)),
}
EFER = 0xC0000080


def new_engine(mode: str) -> Any:
    """An engine with paging about to be switched on, and a memory whose every 16 bytes say where they are."""
    wide = mode == "4-level"
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64 if wide else unicorn.UC_MODE_32)
    uc.ctl_set_tlb_mode(unicorn.UC_TLB_CPU)
    uc.mem_map(0, MEMORY)
    uc.mem_write(0, marked_memory())
    uc.reg_write(x86.UC_X86_REG_MSR, (EFER, 0xD00 if wide else 0x800))
    uc.reg_write(x86.UC_X86_REG_CR4, 0x10 if mode == "2-level" else 0x30)
    uc.reg_write(x86.UC_X86_REG_CR3, ROOT)
    uc.reg_write(x86.UC_X86_REG_CR0, 0x80010001)
    return uc


def marked_memory() -> bytes:
    """16 bytes per 16 bytes: ``mov eax, number`` and padding."""
    one = b"".join(b"\xb8" + n.to_bytes(4, "little") + b"\x90" * 11 for n in range(MEMORY // 16))
    return one


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
    translation = MODES[mode][0]
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
    layout = MODES[mode][0].layout
    va, table = 0, ROOT
    for level in range(layout.levels):
        size = layout.entry_bytes[level]
        filled = [
            (place - table) // size
            for place in entries
            if table <= place < table + (size << layout.index_bits[level]) and (level or place - table)
        ]
        index = rng.choice(filled) if filled and rng.random() < 0.95 else rng.randrange(layout.entries_of(level))
        va |= index << layout.shift_of(level)
        table = entries.get(table + index * size, 0) & 0xFFFFF000
    if mode == "4-level" and va >> 47:
        va |= 0xFFFF << 48
    return va | rng.randrange(4096) & ~0xF


def engine_answer(uc: Any, va: int, access: Access, writes_through: bool) -> int | None:
    """What one access reaches: the number of the 16 bytes it read, wrote or executed; None: it faulted."""
    uc.reg_write(x86.UC_X86_REG_CR0, 0x80000001 | (0 if writes_through else 1 << 16))
    uc.reg_write(x86.UC_X86_REG_CR3, ROOT)
    wide = uc.ctl_get_mode() & unicorn.UC_MODE_64
    address, result = (x86.UC_X86_REG_RBX, x86.UC_X86_REG_RAX) if wide else (x86.UC_X86_REG_EBX, x86.UC_X86_REG_EAX)
    uc.reg_write(address, va)
    uc.reg_write(result, 0)
    load = b"\x8b\x43\x01"  # mov eax, [ebx + 1]
    store = b"\xff\x43\x01"  # inc dword [ebx + 1]: reads what it then replaces
    uc.mem_write(CODE, store if access == Access.STORE else load)
    uc.ctl_remove_cache(CODE, CODE + 16)
    try:
        if access == Access.FETCH:
            uc.emu_start(va, va + 5, count=1)
        else:
            uc.emu_start(CODE, CODE + 3, count=1)
    except unicorn.UcError as error:
        assert error.errno == unicorn.UC_ERR_EXCEPTION
        assert uc.reg_read(x86.UC_X86_REG_CR2) == va + (access != Access.FETCH)
        return None
    return int(uc.reg_read(result)) & 0xFFFFFFFF


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 32))
def test_random_tables_translate_as_on_the_engine(mode: str, seed: int) -> None:
    rng = random.Random(seed)
    entries = random_tables(rng, mode)
    strict, lenient = MODES[mode]
    ram = Ram(MEMORY)
    for place, entry in entries.items():
        size = strict.layout.entry_bytes[0]
        ram.write_entry(place, size, "little", entry & ((1 << 8 * size) - 1))
    tables = ram.read(ROOT, END_OF_TABLES - ROOT)
    uc = new_engine(mode)
    for _ in range(25):
        va = question(rng, mode, entries)
        access = rng.choice(list(Access))
        wp_clear = strict is not lenient and mode == "2-level" and rng.random() < 0.3
        translation = lenient if wp_clear else strict
        found = walk(ram, translation, ROOT, va, access, Privilege.SUPERVISOR)
        if found.pa is not None and found.pa < END_OF_TABLES:
            continue  # the probe would change the tables or itself
        uc.mem_write(ROOT, tables)
        answer = engine_answer(uc, va, access, wp_clear)
        if found.pa is None:
            assert answer is None, (hex(va), found)
        else:
            assert answer is not None, (hex(va), access, found)
            if access == Access.STORE:
                uc.mem_write(found.pa + 1, (found.pa // 16).to_bytes(4, "little"))
            else:
                assert answer == found.pa // 16, (hex(va), found)
        assert found.fault != WalkFault.TABLE_UNREADABLE
