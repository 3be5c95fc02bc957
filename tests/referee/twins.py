"""One program, run by the kernel of this host and by the emulator, compared after every step.

A ``Twin`` is a process of each. Its methods make one system call or access in both, compare what came of it (an errno,
or a refusal), and then what every live twin has: bytes of page tables and minor faults. Nothing is
rounded and nothing is tolerated. Where today's kernel is known to do something else on purpose, a method here says
so in one place, under the name that ``docs/referee.md`` gives the rule.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from polymmu import Machine, SegmentationFault
from polymmu.errors import SyscallError
from polymmu.machine import Mm
from polymmu.mm.tables import find_entry, pfn_of, read_pte, read_ptes, table_runs
from polymmu.mm.vma import find_vma, vmas_of
from polymmu.structs import PG_ANON, VM_GROWSDOWN, VM_SHARED, VM_WRITE, vm_area_struct
from tests.referee.real import Process, Reading, Zygote

__all__ = ["PAGE", "Referee", "Twin"]

PAGE = 4096
TABLE = 512 * PAGE
"""What one pte table covers."""

NR_MMAP, NR_MPROTECT, NR_MUNMAP, NR_BRK, NR_ACCESS, NR_MREMAP, NR_MADVISE, NR_GETRANDOM = (
    9, 10, 11, 12, 21, 25, 28, 318,
)  # fmt: skip
PROTECTIONS = {"r": 1, "w": 2, "x": 4}
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x1, 0x2, 0x10, 0x20
MAP_GROWSDOWN, MAP_NORESERVE, MAP_POPULATE = 0x100, 0x4000, 0x8000
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MADV_DONTNEED = 4

FAULT_AROUND = 16 * PAGE
STACK_GUARD_GAP = 256 * PAGE


class Referee:
    """The two sides, and every twin that lives."""

    def __init__(self, zygote: Zygote, machine: Machine) -> None:
        self.zygote = zygote
        self.machine = machine
        self.cpu = machine.cpus[0]
        self.twins: list[Twin] = []
        self.forked: set[int] = set()
        """Anonymous frames that a fork shared and that no store has claimed since (rule exclusive)."""

    def start(self) -> Twin:
        """A process with nothing mapped, on both sides; its heap begins where the kernel says."""
        twin = Twin(self, self.zygote.process.fork(), self.machine.new_mm())
        self.cpu.switch_mm(twin.mm)
        twin.mm.set_brk_start(-(-twin.real.syscall(NR_BRK, 0) // PAGE) * PAGE)
        return twin

    def end(self) -> None:
        """End every twin, the youngest first, without a look at what they had."""
        while self.twins:
            twin = self.twins.pop()
            twin.real.exit()
            twin.mm.exit()
        self.forked.clear()

    def faults(self) -> int:
        """Faults that the emulator has served, in all: Linux counts each that ends well and needed no I/O."""
        counted = self.machine.counters.faults
        return sum(n for kind, n in counted.items() if kind != "segv")

    def compare(self, step: str) -> None:
        """All twins, after ``step``."""
        kernel = [twin.real.reading() for twin in self.twins]
        emulator = [twin.reading() for twin in self.twins]
        assert emulator == kernel, f"after {step}: emulator {emulator}, kernel {kernel}"


class Twin:
    """One process on both sides."""

    def __init__(self, referee: Referee, real: Process, mm: Mm) -> None:
        self.referee = referee
        self.real = real
        self.mm = mm
        self.faults = 0
        referee.twins.append(self)

    def reading(self) -> Reading:
        """What the emulator counts for its side."""
        return Reading(sum(self.mm.struct.nr_tables[1:]) * PAGE, self.faults)

    def compare_mappings(self, step: str) -> None:
        """Where this process's mappings begin and end, after ``step``: what was merged, and what was not."""
        kernel, emulator = self.real.mappings(), self.mm.mappings()
        assert emulator == kernel, f"after {step}: emulator {spelt(emulator)}, kernel {spelt(kernel)}"

    # ------------------------------------------------------------------ system calls
    def mmap(
        self,
        at: int,
        length: int,
        prot: str = "rw",
        *,
        shared: bool = False,
        populate: bool = False,
        grows_down: bool = False,
    ) -> None:
        """A fixed anonymous mapping; it replaces what was there."""
        noreserve = length > 1 << 30  # rule accounting
        flags = MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE * noreserve
        flags |= MAP_SHARED if shared else MAP_PRIVATE
        flags |= MAP_POPULATE * populate | MAP_GROWSDOWN * grows_down
        self._both(
            f"mmap({at:#x}, {length:#x}, {prot!r}, {shared=}, {populate=}, {grows_down=})",
            lambda: self.real.syscall(NR_MMAP, at, length, protection(prot), flags, -1, 0),
            lambda: self.mm.mmap(
                length,
                prot,
                at=at,
                fixed=True,
                shared=shared,
                populate=populate,
                grows_down=grows_down,
                noreserve=noreserve,
            ),
        )
        if populate:
            self._claim(at, length)

    def munmap(self, at: int, length: int) -> None:
        self._both(
            f"munmap({at:#x}, {length:#x})",
            lambda: self.real.syscall(NR_MUNMAP, at, length),
            lambda: self.mm.munmap(at, length),
        )

    def mprotect(self, at: int, length: int, prot: str) -> None:
        """Rules stale and exclusive: the right to write is given in two steps, and then claimed."""
        if "w" in prot:
            self._mprotect(at, length, "")
        self._mprotect(at, length, prot)
        if "w" in prot:
            for page in self._exclusive_pages(at, length):
                self._spared(self.referee.cpu.store, page, b"\1")

    def _mprotect(self, at: int, length: int, prot: str) -> None:
        self._both(
            f"mprotect({at:#x}, {length:#x}, {prot!r})",
            lambda: self.real.syscall(NR_MPROTECT, at, length, protection(prot)),
            lambda: self.mm.mprotect(at, length, prot),
        )

    def mremap(self, at: int, old: int, new: int, to: int | None = None) -> None:
        """In place, or to ``to``; never to a place of the kernel's choice, which is random."""
        flags = 0 if to is None else MREMAP_MAYMOVE | MREMAP_FIXED
        self._both(
            f"mremap({at:#x}, {old:#x}, {new:#x}, to={to if to is None else hex(to)})",
            lambda: self.real.syscall(NR_MREMAP, at, old, new, flags, to or 0),
            lambda: self.mm.mremap(at, old, new, may_move=to is not None, to=to),
        )

    def dontneed(self, at: int, length: int) -> None:
        """Rule reclaim: no call drops all that one pte table maps."""
        while length:
            part = min(length, (TABLE - at % TABLE) if at % TABLE else TABLE // 2)
            self.dontneed_at_once(at, part)
            at, length = at + part, length - part

    def dontneed_at_once(self, at: int, length: int) -> None:
        self._both(
            f"madvise({at:#x}, {length:#x}, DONTNEED)",
            lambda: self.real.syscall(NR_MADVISE, at, length, MADV_DONTNEED),
            lambda: self.mm.madvise(at, length, "dontneed"),
        )

    def brk(self, size: int) -> int:
        """Make the heap ``size`` bytes long; where it starts."""
        start = self.mm.struct.start_brk
        self._both(
            f"brk({start + size:#x})",
            lambda: self.real.syscall(NR_BRK, start + size),
            lambda: self.mm.brk(start + size),
        )
        return start

    def fork(self) -> Twin:
        """A child twin. What both map now, neither owns."""
        self.referee.forked.update(
            pfn for _, pfn, _ in self._anonymous_pages(0, self.referee.machine.task_size)
        )
        child = Twin(self.referee, self.real.fork(), self.mm.fork())
        child.compare_mappings("fork")
        self.referee.compare("fork")
        return child

    def exit(self) -> None:
        self.referee.twins.remove(self)
        self.real.exit()
        self.mm.exit()
        self.referee.compare("exit")

    # ---------------------------------------------------------------------- accesses
    def load(self, addr: int) -> None:
        """Read a byte, or see on both sides that it may not be read."""
        if self._not_comparable(addr):
            return
        around = self._pages_around(addr)
        if self._access(addr, "load"):
            self.real.load(addr)
            for page in around:
                self._spared(self.referee.cpu.load, page, 1)
        else:  # access(2) reads a path there; no program dies of that
            assert self.real.syscall(NR_ACCESS, addr, 0) == -errno.EFAULT, hex(addr)
        self.referee.compare(f"load of {addr:#x}")

    def store(self, addr: int) -> None:
        """Write a byte, or see on both sides that it may not be written."""
        if self._not_comparable(addr):
            return
        if self._access(addr, "store"):
            self.real.store(addr)
            self._claim(addr & -PAGE, PAGE)
        else:
            assert self.real.syscall(NR_GETRANDOM, addr, 1, 0) == -errno.EFAULT, hex(addr)
        self.referee.compare(f"store to {addr:#x}")

    # --------------------------------------------------------------------- both sides
    def _both(self, step: str, real: Callable[[], int], emulated: Callable[[], object]) -> None:
        """Make a call on both sides: the same errno or none, then the same readings."""
        wanted = real()
        before = self.referee.faults()
        try:
            emulated()
            got = 0
        except SyscallError as refusal:
            assert refusal.errno is not None
            got = refusal.errno
        self.faults += self.referee.faults() - before
        assert got == (-wanted if -4096 < wanted < 0 else 0), f"{step}: emulator {got}, kernel {wanted}"
        self.compare_mappings(step)
        self.referee.compare(step)

    def _access(self, addr: int, kind: str) -> bool:
        """Access on the emulator's side, counted; whether it was allowed."""
        cpu = self.referee.cpu
        cpu.switch_mm(self.mm)
        before = self.referee.faults()
        try:
            if kind == "load":
                cpu.load(addr, 1)
            else:
                cpu.store(addr, b"\1")
        except SegmentationFault:
            return False
        finally:
            self.faults += self.referee.faults() - before
        return True

    def _spared(self, access: Callable[..., object], page: int, what: object) -> None:
        """An access on the emulator's side that brings what the kernel has brought already; it counts nothing."""
        self.referee.cpu.switch_mm(self.mm)
        access(page, what)

    # -------------------------------------------------------------------------- rules
    def _not_comparable(self, addr: int) -> bool:
        """Rules guard gap and beyond the file: accesses that this test leaves out."""
        vma = find_vma(self.mm.struct, addr)
        if vma is None:
            return False
        if addr < vma.vm_start:
            below = vma.vm_prev
            gap = (addr & -PAGE) - below.vm_end if below is not None else STACK_GUARD_GAP
            return bool(vma.vm_flags & VM_GROWSDOWN) and gap < STACK_GUARD_GAP
        return vma.vm_file is not None and file_page(vma, addr) * PAGE >= vma.vm_file.size

    def _pages_around(self, addr: int) -> list[int]:
        """Rule fault-around: the pages of a file that the kernel maps along with the one at ``addr``."""
        vma = find_vma(self.mm.struct, addr)
        if vma is None or addr < vma.vm_start or vma.vm_file is None or self._is_present(addr):
            return []
        # From a multiple of 64 KiB on, or from the mapping's start; 64 KiB long, but not beyond the pte table.
        first = max(addr & -FAULT_AROUND, vma.vm_start)
        end = min(first + FAULT_AROUND, (addr | TABLE - 1) + 1, vma.vm_end)
        pages = range(first, end, PAGE)
        cached = vma.vm_file.mapping.pages
        return [page for page in pages if file_page(vma, page) in cached and not self._is_present(page)]

    def _is_present(self, addr: int) -> bool:
        ptep = find_entry(self.mm.struct, addr)
        return ptep >= 0 and read_pte(self.mm.struct, ptep) != self.referee.machine.kernel.shape.pte.empty

    def _anonymous_pages(self, at: int, length: int) -> Iterator[tuple[int, int, vm_area_struct]]:
        """(address, frame, vma) of the anonymous pages that this process maps in [at, at + length)."""
        mm = self.mm.struct
        kernel = self.referee.machine.kernel
        for vma in vmas_of(find_vma(mm, at)):
            start, end = max(vma.vm_start, at), min(vma.vm_end, at + length)
            if start >= end:
                return
            if vma.vm_flags & VM_SHARED:
                continue
            for ptep, addr, stop in table_runs(mm, start, end):
                for n, pte in enumerate(read_ptes(mm, ptep, (stop - addr) // PAGE).tolist()):
                    pfn = pfn_of(kernel.shape, pte)
                    if pte != kernel.shape.pte.empty and kernel.frames.flags[pfn] & PG_ANON:
                        yield addr + n * PAGE, pfn, vma

    def _exclusive_pages(self, at: int, length: int) -> list[int]:
        """Rule exclusive: pages that today's mprotect makes writable at once."""
        pages = self._anonymous_pages(at, length)
        return [
            page for page, pfn, vma in pages if pfn not in self.referee.forked and vma.vm_flags & VM_WRITE
        ]

    def _claim(self, at: int, length: int) -> None:
        """Stores have been to these pages: what is mapped there now is this process's own."""
        self.referee.forked.difference_update(pfn for _, pfn, _ in self._anonymous_pages(at, length))


def spelt(mappings: list[tuple[int, int, str]]) -> str:
    return " ".join(f"{start:#x}-{end:#x}:{rights or 'none'}" for start, end, rights in mappings)


def protection(prot: str) -> int:
    return sum(PROTECTIONS[letter] for letter in prot)


def file_page(vma: vm_area_struct, addr: int) -> int:
    """Which page of its file ``vma`` shows at ``addr``."""
    return vma.vm_pgoff + (addr - vma.vm_start) // PAGE
