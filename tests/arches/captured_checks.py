"""The checks that every captured x86 set must pass; each architecture's test names its file and machine."""

from __future__ import annotations

from typing import Any

import numpy as np

from polymmu.machine import Machine
from polymmu.translation import Translated, translate
from tests.arches.captured import DATA, NOT_MAPPED, load

RIGHTS = tuple(
    (privilege, access) for privilege in ("supervisor", "user") for access in ("load", "store", "fetch")
)
"""Bits 0 to 5 of ``perm``."""
X, G, _P, D, A, _C, _T, U, W = (1 << n for n in range(9))
"""Bits of ``q_flags``: QEMU's `info tlb` letters XGPDACTUW."""


class CapturedTables:
    """Subclass with ``file`` and ``machine`` (and ``sets``)."""

    file: str
    machine: str
    sets: tuple[str, ...] = ()
    data: dict[str, Any]
    emulated: Machine
    answers: list[Translated]

    @classmethod
    def setup_class(cls) -> None:
        cls.data = load(cls.file)
        cls.emulated = Machine.from_file(cls.machine, sets=cls.sets)
        cls.answers = translate(cls.emulated, cls.data["q_va"].tolist(), DATA / cls.file)

    def test_every_address_translates_as_qemu_says(self) -> None:
        ours = [NOT_MAPPED if answer.pa is None else answer.pa for answer in self.answers]
        assert ours == self.data["q_pa"].tolist()

    def test_every_leaf_shows_the_flags_qemu_shows(self) -> None:
        checked = 0
        for answer, source, flags in zip(self.answers, self.data["q_src"], self.data["q_flags"], strict=True):
            if source or answer.pa is None:
                continue
            checked += 1
            entry = answer.path[-1][2]
            assert bool(flags & W) == bool(entry & 2)
            assert bool(flags & U) == bool(entry & 4)
            assert bool(flags & A) == answer.flags["accessed"]
            assert bool(flags & D) == answer.flags["dirty"]
            assert bool(flags & G) == answer.flags["global"]
        assert checked > 1000

    def test_every_right_is_the_one_unicorn_grants(self) -> None:
        for bit, (privilege, access) in enumerate(RIGHTS):
            found = translate(
                self.emulated,
                self.data["q_va"].tolist(),
                DATA / self.file,
                access=access,
                privilege=privilege,
            )
            ours = np.array([answer.pa is not None for answer in found])
            expected = (self.data["perm"] >> bit & 1).astype(bool)
            assert (ours == expected).all(), (privilege, access, np.flatnonzero(ours != expected)[:5])

    def test_every_pagemap_word_agrees(self) -> None:
        page = self.data["meta"]["page_size"]
        found = translate(self.emulated, self.data["pm_va"].tolist(), DATA / self.file)
        for answer, word in zip(found, self.data["pm_raw"].tolist(), strict=True):
            present = word >> 63
            assert (answer.pa is not None) == bool(present), hex(answer.va)
            if present:
                assert answer.pa == (word & (1 << 55) - 1) * page
