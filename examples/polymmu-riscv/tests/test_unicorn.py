"""Random page tables translate as on the Unicorn engine: same bytes reached, same refusals, in all three modes.

The engine gets the tables' bytes and makes one load, store or fetch per question, as user or supervisor, from an empty
TLB. It sets accessed and dirty itself, as Svadu does. Its walker is of 2020: it lets reserved high bits, and A, D and U
in entries that point to tables, pass; the random entries have none, and ``test_vectors`` checks those by hand.
"""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polymmu
import polymmu_riscv as riscv
from polymmu.arch import Access, Privilege, RadixLayout
from polymmu_riscv import LAYOUTS, SATP_MODES, RiscvConfig
from polymmu_riscv.entries import A, D, G, R, U, V, W, X

unicorn: Any = pytest.importorskip("unicorn")
registers: Any = pytest.importorskip("unicorn.riscv_const")

MEMORY = 16 << 20
CODE = {Privilege.SUPERVISOR: 0x1000, Privilege.USER: 0x2000}
"""Where the probing instruction is, at the same virtual address."""
ROOT = 0x10000
FIXED = (0x11000, 0x12000, 0x13000, 0x14000)  # tables that map the code
POOL = {
    level: tuple(range(0x15000 + n * 0x2000, 0x17000 + n * 0x2000, 0x1000))
    for n, level in enumerate((1, 2, 3, 4))
}
"""Tables with random entries, by level: a last level's entry, taken for a pointer, would lead into the marks."""
END_OF_TABLES = 0x20000
SUM, MXR = 1 << 18, 1 << 19
MACHINE_MODE = 3
MACHINES = {"sv39": "riscv64-sv39", "sv48": "riscv64", "sv57": "riscv64-sv57"}
MARK = 0x37 | 10 << 7
"""``lui a0, number``: what each 16 bytes of memory begin with, the number saying where they are."""
LOAD, STORE = 0x0005A503, 0x0005A423  # lw a0, 0(a1); sw zero, 8(a1)


def marked_memory() -> ctypes.Array[ctypes.c_char]:
    """Memory whose every 16 bytes say where they are."""
    marks = b"".join((n << 12 | MARK).to_bytes(4, "little") + b"\xff" * 12 for n in range(MEMORY // 16))
    return ctypes.create_string_buffer(marks, MEMORY)


BUFFER = marked_memory()
BASE = ctypes.addressof(BUFFER)


def table_entry(table: int) -> int:
    return table >> 2 | V


def random_entry(rng: random.Random, layout: RadixLayout, level: int) -> int:
    """An entry that mostly leads on; a pointer at the last level and W without R are among them."""
    if rng.random() < 0.1:
        return rng.getrandbits(54) & ~V
    if level < layout.pte_level and rng.random() < 0.7:
        return table_entry(rng.choice(POOL[level + 1])) | rng.choice((0, G))
    leaves = (R, R | W, R | W | X, R | X, X, R | W | X, W, W | X)
    rights = rng.choice((*leaves, 0) if level == layout.pte_level else leaves)
    flags = V | rights
    for bit, share in ((U, 0.6), (G, 0.2), (A, 0.8), (D, 0.6)):
        flags |= bit if rights and rng.random() < share else 0
    shift = layout.shift_of(level)
    frame = rng.randrange(END_OF_TABLES, MEMORY) >> shift << shift
    if level < layout.pte_level and rng.random() < 0.15:
        frame |= 0x1000
    return frame >> 2 | flags


def random_tables(rng: random.Random, layout: RadixLayout) -> dict[int, int]:
    """{physical address: entry}; the code is mapped for supervisor and user, each at its page."""
    entries: dict[int, int] = {}
    tables = [(0, ROOT), *((level, table) for level in range(1, layout.levels) for table in POOL[level])]
    for level, table in tables:
        for index in rng.sample(range(512), 96):
            entries[table + 8 * index] = random_entry(rng, layout, level)
    for privilege, code in CODE.items():
        table = ROOT
        for level in range(layout.levels):
            last = level == layout.pte_level
            leaf = code >> 2 | V | R | W | X | A | D | (U if privilege is Privilege.USER else 0)
            entries[table + 8 * layout.index_of(level, code)] = leaf if last else table_entry(FIXED[level])
            table = FIXED[min(level, 3)]
    return entries


def question(rng: random.Random, layout: RadixLayout, entries: dict[int, int]) -> int:
    """An address whose every index is likely to be filled; 16-byte aligned."""
    va, table = 0, ROOT
    for level in range(layout.levels):
        filled = [(place - table) // 8 for place in entries if table <= place < table + 4096]
        index = rng.choice(filled) if filled and rng.random() < 0.95 else rng.randrange(512)
        va |= index << layout.shift_of(level)
        table = (entries.get(table + 8 * index, 0) >> 10 << 12) & 0xFFFFF000
    if va >> (layout.va_bits - 1) and rng.random() < 0.95:
        va |= (1 << 64) - (1 << layout.va_bits)
    return va | rng.randrange(4096) & ~0xF


def engine_answer(
    mode: str, status: int, va: int, access: Access, privilege: Privilege
) -> tuple[int | None, bytes]:
    """What one access reaches, and the tables after it.

    The number of the 16 bytes it read or executed, -1 for a store; None: it was refused.
    """
    uc = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV64)
    uc.ctl_set_tlb_mode(unicorn.UC_TLB_CPU)
    uc.mem_map_ptr(0, MEMORY, unicorn.UC_PROT_ALL, BASE)
    code = CODE[privilege]
    uc.mem_write(code, (STORE if access is Access.STORE else LOAD).to_bytes(4, "little"))
    uc.reg_write(registers.UC_RISCV_REG_PRIV, MACHINE_MODE)
    uc.reg_write(registers.UC_RISCV_REG_MSTATUS, status)
    uc.reg_write(registers.UC_RISCV_REG_SATP, SATP_MODES[mode] << 60 | ROOT >> 12)
    uc.reg_write(registers.UC_RISCV_REG_A1, va)
    uc.reg_write(registers.UC_RISCV_REG_PRIV, int(privilege is Privilege.SUPERVISOR))
    start = va if access is Access.FETCH else code
    try:
        uc.emu_start(start, start + 4, count=1)
        reached = uc.reg_read(registers.UC_RISCV_REG_A0) & 0xFFFFFFFF
        number = -1 if access is Access.STORE else reached >> 12
    except unicorn.UcError as error:
        assert error.errno == unicorn.UC_ERR_EXCEPTION
        number = None
    return number, ctypes.string_at(BASE + ROOT, END_OF_TABLES - ROOT)


@pytest.mark.parametrize("mode", LAYOUTS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 32))
def test_random_tables_translate_as_on_the_engine(mode: str, seed: int) -> None:
    rng = random.Random(seed)
    layout = LAYOUTS[mode]
    entries = random_tables(rng, layout)
    machine = polymmu.Machine.from_file(MACHINES[mode], sets=["riscv.ad_bits=svadu"])
    cpu, ram = machine.kernel.cpus[0], machine.kernel.ram
    for place, entry in entries.items():
        ram.write_entry(place, 8, "little", entry)
    tables = ram.read(ROOT, END_OF_TABLES - ROOT)
    cpu.load_root(ROOT)
    section = RiscvConfig(mode=mode, ad_bits="svadu")
    for _ in range(20):
        va = question(rng, layout, entries)
        access = rng.choice(list(Access))
        privilege = rng.choice(list(Privilege))
        status = rng.choice((0, 0, SUM, MXR, SUM | MXR))
        known = {"satp": SATP_MODES[mode] << 60, "sstatus": status}
        found = riscv.translation(section, known).walk(ram, ROOT, va, access, privilege)
        if found.pa is not None and not END_OF_TABLES <= found.pa < MEMORY:
            continue  # the probe would meet a table, its own code, or no memory
        ctypes.memmove(BASE + ROOT, tables, len(tables))
        mark = BASE + (found.pa or 0) + 8
        before = ctypes.string_at(mark, 4)
        number, after = engine_answer(mode, status, va, access, privilege)
        if found.pa is None:
            assert number is None, (access, privilege, found)
        elif access is Access.STORE:
            assert (number, ctypes.string_at(mark, 4)) == (-1, bytes(4)), (privilege, found)
            ctypes.memmove(mark, before, 4)
        else:
            assert number == found.pa // 16, (access, privilege, found)
        if not status:
            # The compiled walker: the same answer, and the same bits set in the tables.
            cpu.privilege = privilege
            cpu.invalidate(asid=None, include_global=True, walk_caches="all")
            assert compiled(cpu, access, va) == (found.pa is not None)
            assert ram.read(ROOT, END_OF_TABLES - ROOT) == after
        ram.write(ROOT, tables)


def compiled(cpu: Any, access: Access, va: int) -> bool:
    """Whether the CPU makes the access."""
    try:
        if access is Access.STORE:
            cpu.store(va, bytes(4))
        else:
            (cpu.load if access is Access.LOAD else cpu.fetch)(va, 4)
    except polymmu.SegmentationFault:
        return False
    return True
