"""The same questions put to what anyone can install: simulators of caches, a CPU emulator, a forensics tool.

None of them does the same job. Cache simulators with lines of 4096 bytes count TLB hits but walk no tables; the
emulator and the forensics tool translate but count nothing. All are optional (``pip install polymmu[benchmark]``,
and valgrind from the system); one that is missing gets a row that says so. Nothing here is compared for its
results except translations, which must agree.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import KIB, Row, Subject, once, side_by_side
from benchmarks.workloads import TRACES, Lab, machine
from polymmu.machine import Machine
from polymmu.translation import translate
from polymmu.workload.model import AccessColumns

__all__ = ["peers"]

PAGE = 4096
SOME = 1_000_000
"""Accesses for simulators that need a second for ten million."""
PAGES = 16 * KIB
LOADS = 200_000
TRANSLATIONS = 20_000


class NotInstalledError(Exception):
    """This peer is not here; the message says how to get it."""


def module(name: str, package: str) -> Any:
    """An optional module."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotInstalledError(f"not installed: pip install {package}") from error


# ------------------------------------------------------------------ simulators of caches
def pycachesim(vaddr: NDArray[np.uint64]) -> Subject:
    """Two levels of LRU cache with lines of a page, the addresses handed over in one call."""
    cachesim = module("cachesim", "pycachesim")
    addresses = vaddr.tolist()

    def prepare() -> Callable[[], object]:
        memory = cachesim.MainMemory()
        second = cachesim.Cache("L2", 256, 4, PAGE, "LRU")
        first = cachesim.Cache("L1", 16, 4, PAGE, "LRU", store_to=second, load_from=second)
        memory.load_to(second)
        memory.store_from(second)
        simulator = cachesim.CacheSimulator(first, memory)
        return lambda: simulator.load(addresses)

    return prepare


def libcachesim(vaddr: NDArray[np.uint64], folder: Path) -> Subject:
    """One fully associative LRU cache of 1024 pages over a binary trace of page numbers."""
    library = module("libcachesim", "libcachesim")
    # The library's own format: request time, object, size, position of its next use (not known here).
    kind = np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])
    rows = np.zeros(len(vaddr), kind)
    rows["object"], rows["size"], rows["next"] = vaddr // PAGE, 1, -1
    trace = folder / "accesses.oracleGeneral.bin"
    rows.tofile(trace)

    def prepare() -> Callable[[], object]:
        reader = library.TraceReader(str(trace), library.TraceType.ORACLE_GENERAL_TRACE)
        cache = library.LRU(cache_size=1024)
        return lambda: cache.process_trace(reader)

    return prepare


def cachegrind_row() -> Row:
    """valgrind's cachegrind on a live program, per reference that it counts; against valgrind doing nothing."""
    what = "cachegrind, 4096-byte lines, live (gzip cc1.npz)"
    valgrind, gzip = shutil.which("valgrind"), shutil.which("gzip")
    if valgrind is None or gzip is None:
        return Row(group="peers", what=what, figure=None, note="not installed: apt install valgrind")
    tlb = f"{64 * PAGE},4,{PAGE}"
    options = ["--tool=cachegrind", "--cache-sim=yes", f"--I1={tlb}", f"--D1={tlb}"]
    options += [f"--LL={1024 * PAGE},4,{PAGE}", "--cachegrind-out-file=/dev/null"]
    program = [gzip, "-c", str(TRACES / "cc1.npz")]

    def seconds(command: list[str]) -> tuple[float, str]:
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start, done.stderr.decode()

    idle, _ = seconds([valgrind, "--tool=none", *program])
    busy, told = seconds([valgrind, *options, *program])
    counted = re.findall(r"[ID] +refs: +([\d,]+)", told)
    references = sum(int(number.replace(",", "")) for number in counted)
    return Row(
        group="peers",
        what=what,
        figure=references / busy / 1e6,
        unit="M accesses/s",
        note=f"{busy:.2f} s; the same under --tool=none {idle:.2f} s; no tables are walked",
    )


# ------------------------------------------------------------------ translators
@attrs.define
class Tables:
    """A machine with ``PAGES`` pages mapped, each holding its own number, and random addresses in them."""

    ours: Machine
    vaddr: NDArray[np.uint64]
    numbers: NDArray[np.uint64]
    code: int
    listed: int

    @classmethod
    def build(cls, pages: int, loads: int) -> Tables:
        """A machine of 128 MiB: code, the list of addresses to load from, and the pages."""
        ours = machine(memory="128MiB")
        mm = ours.new_mm()
        code = mm.mmap(PAGE, "rwx", populate=True)
        listed = mm.mmap(8 * loads, populate=True)
        start = mm.mmap(pages * PAGE, "rw", populate=True)
        numbers = np.random.default_rng(3).integers(pages, size=loads).astype(np.uint64)
        vaddr = np.uint64(start) + numbers * np.uint64(PAGE)
        cpu = ours.cpus[0]
        cpu.switch_mm(mm)
        for number in range(pages):
            cpu.store(start + number * PAGE, number.to_bytes(8, "little"))
        cpu.store(listed, vaddr.tobytes())
        return cls(ours, vaddr, numbers, code, listed)

    def replay(self) -> Subject:
        """Our replay of the loads."""
        cpu = self.ours.cpus[0]
        op, size = np.ones(len(self.vaddr), np.uint8), np.full(len(self.vaddr), 8, np.uint8)
        return lambda: lambda: cpu.replay(op, self.vaddr, size, 0, len(self.vaddr))

    def unicorn(self) -> Subject:
        """Unicorn running a loop that adds up what lies at the addresses, over the same RAM."""
        unicorn, x86 = module("unicorn", "unicorn"), module("unicorn.x86_const", "unicorn")
        # again: lodsq; add rbx, [rax]; dec rcx; jnz again
        program = bytes.fromhex("48ad 480318 48ffc9 75f6")
        self.ours.cpus[0].store(self.code, program)
        ram, root = self.ours.kernel.ram, self.ours.cpus[0].cpu.root

        def prepare() -> Callable[[], object]:
            engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
            engine.ctl_set_tlb_mode(unicorn.UC_TLB_CPU)
            engine.mem_map_ptr(0, ram.size, unicorn.UC_PROT_ALL, ram.bytes.ctypes.data)
            engine.reg_write(x86.UC_X86_REG_MSR, (0xC0000080, 0xD00))  # EFER: long mode, no-execute
            engine.reg_write(x86.UC_X86_REG_CR4, 0x20)
            engine.reg_write(x86.UC_X86_REG_CR3, root)
            engine.reg_write(x86.UC_X86_REG_CR0, 0x80010001)
            for register, value in (("RSI", self.listed), ("RBX", 0), ("RCX", len(self.vaddr))):
                engine.reg_write(getattr(x86, f"UC_X86_REG_{register}"), value)

            def run() -> None:
                engine.emu_start(self.code, self.code + len(program))
                if engine.reg_read(x86.UC_X86_REG_RBX) != int(self.numbers.sum()):
                    raise AssertionError("unicorn translated an address differently")

            return run

        return prepare

    def volatility(self, some: int) -> Subject:
        """Volatility 3's Intel layer, one call per address, over a copy of the same RAM."""
        contexts = module("volatility3.framework.contexts", "volatility3")
        physical = module("volatility3.framework.layers.physical", "volatility3")
        intel = module("volatility3.framework.layers.intel", "volatility3")
        ram, root = self.ours.kernel.ram, self.ours.cpus[0].cpu.root
        context = contexts.Context()
        context.add_layer(physical.BufferDataLayer(context, "ram", "ram", ram.read(0, ram.size)))
        context.config["tables.memory_layer"] = "ram"
        context.config["tables.page_map_offset"] = root
        layer = intel.Intel32e(context, "tables", "tables")
        addresses = self.vaddr[:some].tolist()
        expected = [answer.pa for answer in translate(self.ours, addresses)]

        def run() -> None:
            if [layer.translate(va)[0] for va in addresses] != expected:
                raise AssertionError("volatility translated an address differently")

        return lambda: run

    def translate(self, some: int) -> Subject:
        """Our ``translate``, which keeps every step of every walk."""
        addresses = self.vaddr[:some].tolist()
        return lambda: lambda: translate(self.ours, addresses)


# ------------------------------------------------------------------ the rows
def peers(lab: Lab) -> list[Row]:
    """Rows of each peer beside ours on the same input."""
    some = lab.sized(SOME, 1000)
    accesses = lab.cc1_accesses
    part = AccessColumns(accesses.op[:some], accesses.vaddr[:some], accesses.size[:some])
    tables = Tables.build(lab.sized(PAGES, 16), lab.sized(LOADS, 100))
    asked = lab.sized(TRANSLATIONS, 100)
    with tempfile.TemporaryDirectory() as folder:
        rows = compared(
            "polymmu, cc1, everything mapped",
            lab.replay(part),
            {
                "pycachesim, two levels, bulk": partial(pycachesim, part.vaddr),
                "libCacheSim, one flat LRU": partial(libcachesim, part.vaddr, Path(folder)),
            },
            len(part),
            lab.rounds,
        )
    rows += [cachegrind_row()]
    rows += compared(
        f"polymmu, loads from {lab.sized(PAGES, 16):,} random pages",
        tables.replay(),
        {"Unicorn, the same loads from the same tables": tables.unicorn},
        len(tables.vaddr),
        lab.rounds,
    )
    rows += compared(
        "polymmu translate, every step kept",
        tables.translate(asked),
        {"Volatility 3, Intel32e.translate on the same tables": partial(tables.volatility, asked)},
        asked,
        lab.rounds,
    )
    return rows


def compared(
    ours: str, subject: Subject, others: dict[str, Callable[[], Subject]], count: int, rounds: int
) -> list[Row]:
    """Ours and the others that are installed, in turns; rates of ``count`` per call."""
    subjects, missing = {ours: subject}, {}
    for name, make in others.items():
        try:
            subjects[name] = make()
            once(subjects[name])
        except NotInstalledError as error:
            subjects.pop(name, None)
            missing[name] = str(error)
    seconds = side_by_side(subjects, min(rounds, 3))
    rate = {name: count / taken / 1e6 for name, taken in seconds.items()}
    return [
        Row(
            group="peers",
            what=name,
            figure=rate.get(name),
            unit="M/s",
            ratio=rate[name] / rate[ours] if name in rate and name != ours else None,
            reference="polymmu" if name in rate and name != ours else "",
            note=missing.get(name, ""),
        )
        for name in (ours, *others)
    ]
