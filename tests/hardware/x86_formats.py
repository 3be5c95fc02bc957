"""Translations for hardware tests: the x86 plugins' own, and one MMU of no real make with 64 KiB pages.

The hardware tests judge the plugins' formats and the walker together, against other emulators and captures.
"""

from __future__ import annotations

from polymmu.hardware.entry import EntryFormat, Field
from polymmu.hardware.layout import RadixLayout
from polymmu.hardware.walk import RadixTranslation
from polymmu.registry import arch_named
from polymmu_x86 import X86Config
from polymmu_x86_64 import X86_64Config

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def radix(translation: object) -> RadixTranslation:
    assert isinstance(translation, RadixTranslation)
    return translation


def two_level() -> RadixTranslation:
    """32-bit paging with CR4.PSE and PSE-36 (40 physical bits)."""
    ops, section = arch_named("x86").ops, X86Config(phys_bits=40)
    return radix(ops.translation(section, ops.boot_registers(section)))


def pae(physical_bits: int = 52) -> RadixTranslation:
    """PAE paging with EFER.NXE set."""
    ops, section = arch_named("x86").ops, X86Config(paging="pae", nx=True, phys_bits=physical_bits)
    return radix(ops.translation(section, ops.boot_registers(section)))


def four_level(physical_bits: int = 52) -> RadixTranslation:
    """64-bit paging with four levels, EFER.NXE set."""
    ops, section = arch_named("x86_64").ops, X86_64Config(phys_bits=physical_bits)
    return radix(ops.translation(section, ops.boot_registers(section)))


def base_64k() -> RadixTranslation:
    """64 KiB base pages, three levels, 2^48 bytes of addresses."""
    present, write, user, accessed, dirty, shared = (Field(1 << n, 1 << n) for n in (0, 1, 2, 5, 6, 8))
    address = (1 << 52) - (1 << 16)
    table = EntryFormat(
        present=present, write=write, user=user, accessed=accessed, table_mask=address, frame_mask=0
    )
    pte = EntryFormat(
        present=present,
        write=write,
        user=user,
        accessed=accessed,
        dirty=dirty,
        global_=shared,
        frame_mask=address,
    )
    return RadixTranslation(
        layout=RadixLayout(
            index_bits=(6, 13, 13),
            page_shift=16,
            names=("pgd", "pmd", "pte"),
            entry_bytes=(8, 8, 8),
            leaf_levels=frozenset({2}),
        ),
        formats=(table, table, pte),
    )
