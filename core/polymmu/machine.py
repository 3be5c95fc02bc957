"""What a user holds: a machine, its address spaces, its CPUs and files.

``Machine``, ``Mm`` and ``CpuHandle`` check arguments, choose the CPU a call runs on, and turn the core's answers into
exceptions. Nothing here is an algorithm.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polymmu import registry
from polymmu.boot import DRIVERS, Program, TimedVectors, Vectors, boot_kernel
from polymmu.description import load as descriptions
from polymmu.description.mistakes import unknown
from polymmu.description.model import MachineDescription
from polymmu.description.yaml_source import Mapping
from polymmu.errors import SegmentationFault, UserMistake, syscall_error
from polymmu.events import Events
from polymmu.hardware.cpu import Cpu
from polymmu.mm import driver as mm_driver
from polymmu.mm import exec as mm_exec
from polymmu.mm import fork as mm_fork
from polymmu.mm import fremap as mm_fremap
from polymmu.mm import gup as mm_gup
from polymmu.mm import mm as mm_life
from polymmu.mm import mmap as mm_mmap
from polymmu.mm import mprotect as mm_mprotect
from polymmu.mm import mremap as mm_mremap
from polymmu.mm import notifier, pagecache, punch, reclaim, truncate, writeback
from polymmu.mm import vma as vmas
from polymmu.mm.frames import put_compound_page
from polymmu.mm.secondary_mmu import SecondaryMmu
from polymmu.registry import Arch
from polymmu.report import SCHEMA, Counters, Report
from polymmu.sanitize.flushes import FlushAudit
from polymmu.sanitize.sanitizer import Sanitizer
from polymmu.sched.driver import TaskSched
from polymmu.sched.timed import TimedSched
from polymmu.sched.user import UserCode
from polymmu.sched.waitqueue import WaitQueue
from polymmu.structs import (
    VM_EXEC,
    VM_GROWSDOWN,
    VM_NORESERVE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    File,
    SwapArea,
    mm_struct,
)

__all__ = ["CpuHandle", "DeviceHandle", "Machine", "Mm"]

RIGHTS = {"r": VM_READ, "w": VM_WRITE, "x": VM_EXEC}
ACCESS_OF_RIGHT = {"r": "load", "w": "store", "x": "fetch"}


class Machine:
    """A machine built from a description. Deterministic: same calls, same bytes."""

    def __init__(
        self,
        description: MachineDescription,
        arch: Arch,
        *,
        sets: Sequence[str] = (),
        driver: str = "solo",
        sanitize: bool = False,
    ) -> None:
        self.description = description
        self.arch = arch
        self.sets = tuple(sets)
        self.kernel = boot_kernel(description, arch, driver=driver)
        self.counters = Counters(self.kernel.shape.layout.names)
        self.flushes = FlushAudit(self.kernel)
        self.kernel.events = Events((self.counters, self.flushes))
        self.vectors = Vectors(self.kernel)
        accesses: Sequence[Cpu | UserCode] = self.kernel.cpus
        self._programs: dict[object, Program] = {}
        sched = self.kernel.sched
        if isinstance(sched, TaskSched):
            cycles_of = partial(hardware_cycles, description)
            programs = [UserCode(cpu, sched, cycles_of) for cpu in self.kernel.cpus]
            self.vectors = TimedVectors(self.kernel, programs)
            accesses = programs
            sched.went_idle = partial(mm_life.enter_lazy_tlb, self.kernel)
        for cpu in self.kernel.cpus:
            cpu.vectors = self.vectors
            cpu.watcher = self.flushes
        self.cpus = tuple(map(partial(CpuHandle, self), self.kernel.cpus, accesses))
        self._chosen: CpuHandle | None = None
        self.sanitizer = Sanitizer(self.kernel) if sanitize else None

    @staticmethod
    def describe(
        name_or_path: str | Path, *, sets: Sequence[str] = (), over: Mapping | None = None
    ) -> tuple[MachineDescription, Arch]:
        """The checked description of an installed machine or a YAML file, and its arch. Raises UserMistake.

        ``over`` is laid over the file, and ``sets`` over that.
        """

        def section_class_of(arch: str) -> type:
            return registry.arch_named(arch).ops.config_class()

        description = descriptions.load_machine(
            str(name_or_path), section_class_of=section_class_of, sets=sets, over=over
        )
        return description, registry.arch_named(description.arch)

    @classmethod
    def from_file(
        cls,
        name_or_path: str | Path,
        *,
        sets: Sequence[str] = (),
        driver: str = "solo",
        sanitize: bool = False,
        over: Mapping | None = None,
    ) -> Self:
        """The installed machine called so, or the one a YAML file describes. Raises UserMistake.

        ``driver``: ``solo`` (calls run one after another) or ``timed`` (tasks on CPUs that run at once).
        ``sanitize``: with a referee that says which invariant of the mm core was broken, where and when.
        ``over``: what a scenario lays over the machine.
        """
        if driver not in DRIVERS:
            raise UserMistake(unknown("driver", driver, DRIVERS))
        description, arch = cls.describe(name_or_path, sets=sets, over=over)
        return cls(description, arch, sets=sets, driver=driver, sanitize=sanitize)

    @property
    def name(self) -> str:
        """The description's name."""
        return self.description.name

    @property
    def driver(self) -> str:
        """Who says what runs when: ``solo`` or ``timed``."""
        return self.kernel.sched.name

    @property
    def page_size(self) -> int:
        """Bytes of the base page."""
        return self.kernel.shape.layout.page_size

    @property
    def huge_page_sizes(self) -> tuple[int, ...]:
        """Bytes of each kind of huge page, ascending; empty where the architecture has none."""
        return self.kernel.shape.huge_page_sizes

    @property
    def task_size(self) -> int:
        """Exclusive top of user addresses."""
        return self.kernel.shape.limits.task_size

    @property
    def first_user_address(self) -> int:
        """Lowest address a mapping may have."""
        return self.kernel.shape.limits.first_user_address

    @property
    def stack_top(self) -> int:
        """Where a program's stack ends."""
        return self.kernel.shape.limits.stack_top

    def new_mm(self) -> Mm:
        """An empty address space. Raises MemoryError if there is no frame for its root."""
        return Mm(self, mm_life.mm_alloc(self.kernel))

    def new_file(self, size: int, name: str = "", huge: int = 0) -> FileHandle:
        """A file of ``size`` bytes of zeroes, held until ``close``. ``huge``: size of its pages, as on hugetlbfs."""
        if size < 0:
            raise UserMistake(f"a file cannot have {size} bytes; give 0 or more")
        if huge and (huge not in self.huge_page_sizes or size % huge):
            raise UserMistake(
                f"a file of {size} bytes in huge pages of {huge}; give whole pages of one of "
                f"{', '.join(map(str, self.huge_page_sizes)) or 'no size: this machine has no huge pages'}"
            )
        return FileHandle(self, pagecache.new_file(self.kernel, name, size, huge_size=huge))

    def new_driver(self, size: int, name: str = "", *, refuses: bool = False) -> FileHandle:
        """The file of a device with ``size`` bytes of memory, which ``Mm.mmap`` maps; held until ``close``.

        ``refuses``: its mmap maps all that was asked for, and fails then. Raises MemoryError without so much memory.
        """
        if size <= 0:
            raise UserMistake(f"a driver cannot have {size} bytes of memory; give 1 or more")
        return FileHandle(self, mm_driver.new_driver(self.kernel, name, size, refuses=refuses))

    def running_cpu(self, mm: mm_struct | None) -> Cpu:
        """The CPU that a call on ``mm`` runs on: a task's own; the chosen one, else the last that loaded it, else 0."""
        if self.kernel.sched.runs_tasks:
            return self.kernel.sched.cpu
        if self._chosen is not None:
            return self._chosen.cpu
        return self.kernel.cpus[mm.last_cpu if mm is not None else 0]

    # --- tasks, under the timed driver
    def _tasks(self) -> TaskSched:
        sched = self.kernel.sched
        if not isinstance(sched, TaskSched):
            raise UserMistake("tasks need the timed driver; build the machine with driver='timed'")
        return sched

    def spawn(self, name: str, cpu: int, mm: Mm | None, body: Callable[[], None]) -> None:
        """A task that runs ``body`` on CPU ``cpu`` in ``mm``, of which it is a user until it ends.

        ``mm`` None: a kernel thread, which borrows what it finds loaded. It starts with ``run_tasks``, or now if a task
        calls this. Raises UserMistake.
        """
        sched = self._tasks()
        if not 0 <= cpu < len(self.cpus):
            raise UserMistake(f"task {name}: no CPU {cpu}; this machine has 0 to {len(self.cpus) - 1}")
        here = self.kernel.cpus[cpu]
        program = Program(self.kernel, here, None if mm is None else mm.checked(), body)
        self._programs[sched.spawn(name, cpu, program.run, program.enter)] = program

    def run_tasks(self) -> None:
        """Run every task to its end, all CPUs at once in virtual time.

        Raises what a task raised (the others are then torn down where they are), or ``Deadlock``.
        """
        sched = self._tasks()
        assert isinstance(sched, TimedSched)
        try:
            sched.run()
        finally:
            self._programs.clear()
        mm_life.leave_lazy_tlb(self.kernel)

    def task_uses(self, cpu: CpuHandle, mm: Mm) -> None:
        """The task that calls this runs in ``mm`` from now on; ``cpu`` must be its own."""
        sched = self._tasks()
        if sched.cpu is not cpu.cpu:
            raise UserMistake(f"a task on CPU {sched.cpu.index} switches the mm of CPU {cpu.index}")
        self._programs[sched.context].use(mm.checked())

    def exit_mm(self) -> None:
        """The task that calls this leaves its mm, as exit does; the last user takes it down."""
        self._programs[self._tasks().context].use(None)

    def leave_mm(self) -> mm_struct | None:
        """The task that calls this leaves the mm that it runs in, of which the caller is a user in its place."""
        program = self._programs[self._tasks().context]
        mm, program.mm = program.mm, None
        return mm

    def work(self, cycles: int) -> None:
        """The task that calls this computes for ``cycles`` without memory."""
        self._tasks().user(lambda: cycles)

    def sleep(self, cycles: int) -> None:
        """The task that calls this sleeps for ``cycles``."""
        self._tasks().sleep(cycles)

    def reclaim(self, pages: int) -> int:
        """Free up to so many pages, the coldest first, as Linux's kswapd does; how many went.

        Raises UserMistake on a machine without a swap area.
        """
        if self.kernel.swap is None:
            raise UserMistake("this machine reclaims nothing: it has no swap area (swap: 64 MiB)")
        self.kernel.sched.cpu = self.running_cpu(None)
        return reclaim.shrink_list(self.kernel, pages)

    def wait_queue(self, name: str, *, idle: bool = True) -> WaitQueue:
        """Where tasks can wait for each other. ``idle`` False: CPUs whose tasks do are not lazy meanwhile."""
        return WaitQueue(self._tasks(), name, idle)

    def report(
        self, *, workload: str = "", workload_sha256: str = "", extra: dict[str, Any] | None = None
    ) -> Report:
        """Everything counted since the machine was built."""
        return Report(assemble(self, workload, workload_sha256, extra or {}))


class CpuHandle:
    """One CPU as a user holds it. As a context manager it makes mm calls run here."""

    def __init__(self, machine: Machine, cpu: Cpu, accesses: Cpu | UserCode) -> None:
        self.machine = machine
        self.cpu = cpu
        self._accesses = accesses
        self._outer: list[CpuHandle | None] = []

    @property
    def index(self) -> int:
        """Number of this CPU."""
        return self.cpu.index

    def __enter__(self) -> CpuHandle:
        self._outer.append(self.machine._chosen)
        self.machine._chosen = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.machine._chosen = self._outer.pop()

    def switch_mm(self, mm: Mm) -> None:
        """Run ``mm`` here from now on. Called by a task: the task does."""
        kernel = self.machine.kernel
        if kernel.sched.runs_tasks:
            self.machine.task_uses(self, mm)
            return
        kernel.sched.cpu = self.cpu
        mm_life.activate(kernel, self.cpu, mm.struct)
        mm.struct.last_cpu = self.cpu.index

    def load(self, va: int, size: int) -> bytes:
        """Read ``size`` bytes at virtual address ``va``. Raises SegmentationFault."""
        return self._accesses.load(_address(va), size)

    def store(self, va: int, data: bytes) -> None:
        """Write ``data`` at virtual address ``va``. Raises SegmentationFault."""
        self._accesses.store(_address(va), data)

    def fetch(self, va: int, size: int) -> bytes:
        """Fetch ``size`` bytes of instructions at ``va``. Raises SegmentationFault."""
        return self._accesses.fetch(_address(va), size)

    def replay(
        self,
        op: NDArray[np.uint8],
        vaddr: NDArray[np.uint64],
        size: NDArray[np.uint8],
        start: int,
        stop: int,
    ) -> int:
        """Replay accesses [start, stop) of a trace's columns. Raises SegmentationFault with ``.index``."""
        try:
            return self._accesses.replay(op, vaddr, size, start, stop)
        except SegmentationFault as refusal:
            refusal.index = self.cpu.position
            raise

    def replay_runs(
        self,
        vpn: NDArray[np.uint64],
        data: NDArray[np.uint8],
        write: NDArray[np.uint8],
        count: NDArray[Any],
        start: int,
        stop: int,
    ) -> int:
        """Replay page runs [start, stop). Raises SegmentationFault with ``.index``."""
        try:
            return self._accesses.replay_runs(vpn, data, write, count, start, stop)
        except SegmentationFault as refusal:
            refusal.index = self.cpu.position
            raise


def _address(va: int) -> int:
    if not 0 <= va < 1 << 64:
        raise UserMistake(f"address {va:#x} is not a 64-bit address")
    return va


class FileHandle:
    """A file as a user holds it; ``close`` drops the reference, mappings keep theirs."""

    def __init__(self, machine: Machine, file: File) -> None:
        self.machine = machine
        self.file = file
        self.closed = False

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.file.size

    def invalidate(self, offset: int, length: int) -> None:
        """Take [offset, offset + length) out of every mapping, private copies excepted; the bytes stay.

        As a driver or a network file system does: without the lock that keeps truncations apart.
        """
        if offset < 0 or length <= 0:
            raise syscall_error(errno.EINVAL, f"{offset:#x} + {length:#x} is not a range of a file")
        truncate.unmap_mapping_range(self.machine.kernel, self.file.mapping, offset, length, False)

    def truncate(self, size: int) -> None:
        """Set the size; pages beyond it leave every mapping."""
        if size < 0:
            raise syscall_error(errno.EINVAL, f"a file cannot have {size} bytes")
        truncate.do_truncate(self.machine.kernel, self.file, size)

    def punch_hole(self, start: int, length: int) -> None:
        """Make bytes [start, start + length), whole pages, zeroes; the pages leave every mapping."""
        punch.punch_hole(self.machine.kernel, self.file, start, length)

    def sync(self) -> int:
        """Write out what was stored through shared mappings; how many pages."""
        return writeback.sync_file(self.machine.kernel, self.file)

    def remove(self) -> None:
        """Pull the device out: its memory leaves every mapping, and is free. Only of a driver's file."""
        if self.file.remove is None:
            raise UserMistake(f"{self.file.name or 'the file'} has no device that could be removed")
        self.file.remove()

    def close(self) -> None:
        """Drop the holder's reference."""
        if not self.closed:
            self.closed = True
            pagecache.put_file(self.machine.kernel, self.file)


class DeviceHandle:
    """A device that uses a program's addresses, as a user holds it (``Mm.attach_device``)."""

    def __init__(self, machine: Machine, mmu: SecondaryMmu) -> None:
        self.machine = machine
        self.mmu = mmu

    def _enter(self) -> SecondaryMmu:
        """The device, with the kernel on the CPU that serves it."""
        self.machine.kernel.sched.cpu = self.machine.running_cpu(self.mmu.mm)
        return self.mmu

    def load(self, va: int, size: int) -> bytes:
        """Read ``size`` bytes at ``va``, as the device sees them. Raises SegmentationFault, SyscallError."""
        return b"".join([self._enter().load(at, n) for at, n in self._pieces(va, size)])

    def store(self, va: int, data: bytes) -> None:
        """Write ``data`` at ``va``. Raises SegmentationFault, SyscallError."""
        for at, n in self._pieces(va, len(data)):
            self._enter().store(at, data[at - va : at - va + n])

    def detach(self) -> None:
        """Forget everything of the address space; nothing to do where that has gone."""
        mm = self._enter().mm
        if mm is not None:
            notifier.mmu_notifier_unregister(mm, self.mmu)

    def _pieces(self, va: int, size: int) -> list[tuple[int, int]]:
        """The parts of [va, va + size) in one page each."""
        page, end = self.machine.page_size, _address(va) + size
        cuts = [va, *range(va // page * page + page, end, page), end]
        return [(at, stop - at) for at, stop in itertools.pairwise(cuts)]


class Mm:
    """An address space as a user holds it: system calls in Python's words."""

    def __init__(self, machine: Machine, struct: mm_struct) -> None:
        self.machine = machine
        self.struct = struct
        self.generation = struct.generation

    def checked(self) -> mm_struct:
        """The mm_struct. Raises UserMistake if it has exited."""
        if self.struct.generation != self.generation:
            raise UserMistake("this address space has exited; make a new one with machine.new_mm()")
        return self.struct

    def _enter(self) -> mm_struct:
        """The mm_struct, with the kernel on the CPU this call runs on."""
        self.checked()
        kernel = self.machine.kernel
        kernel.sched.cpu = self.machine.running_cpu(self.struct)
        return self.struct

    def mmap(
        self,
        length: int,
        prot: str = "rw",
        *,
        at: int | None = None,
        fixed: bool = False,
        shared: bool = False,
        file: FileHandle | None = None,
        offset: int = 0,
        populate: bool = False,
        grows_down: bool = False,
        noreserve: bool = False,
        huge: int = 0,
    ) -> int:
        """Map ``length`` bytes; returns the address.

        ``prot``: letters of ``rwx``, empty for none. ``at``: a wish, or with ``fixed`` an order that replaces
        what was there. ``offset``: bytes into ``file``, a multiple of the page size. ``huge``: of huge pages of so
        many bytes (``machine.huge_page_sizes``). ``noreserve``: not counted as committed memory, where overcommitting
        is allowed. Raises SyscallError.
        """
        mm = self._enter()
        flags = rights_of(prot)
        if shared:
            flags |= VM_SHARED
        if grows_down:
            flags |= VM_GROWSDOWN
        if noreserve and self.machine.description.kernel.overcommit != "never":
            flags |= VM_NORESERVE
        page = self.machine.page_size
        if offset < 0 or offset % page:
            raise syscall_error(
                errno.EINVAL, f"offset {offset:#x} is not a multiple of the page size {page:#x}"
            )
        if fixed and at is None:
            raise syscall_error(errno.EINVAL, "a fixed mapping needs an address (at=)")
        return mm_mmap.do_mmap(
            mm,
            at,
            length,
            flags,
            fixed=fixed,
            file=file.file if file is not None else None,
            pgoff=offset // page,
            populate=populate,
            huge_size=huge,
        )

    def munmap(self, addr: int, length: int) -> None:
        """Unmap [addr, addr + length), rounded up to pages."""
        mm_mmap.do_munmap(self._enter(), addr, length)

    def mprotect(self, addr: int, length: int, prot: str) -> None:
        """Change the rights of [addr, addr + length)."""
        mm_mprotect.do_mprotect(self._enter(), addr, length, rights_of(prot))

    def mremap(
        self, addr: int, old_length: int, new_length: int, *, may_move: bool = True, to: int | None = None
    ) -> int:
        """Resize or move a mapping; returns its address. ``to``: where it must go."""
        return mm_mremap.do_mremap(
            self._enter(), addr, old_length, new_length, may_move=may_move, new_addr=to
        )

    def brk(self, addr: int = 0) -> int:
        """Move the program break (0: only ask); returns it as it then is."""
        return mm_mmap.do_brk(self._enter(), addr)

    def set_brk_start(self, addr: int) -> None:
        """Say where the heap begins, as a program's loader does."""
        mm = self._enter()
        mm.start_brk = mm.brk = addr

    def madvise(self, addr: int, length: int, advice: str) -> None:
        """``dontneed`` drops the pages of a range; they come back zeroed, or from the file."""
        if advice != "dontneed":
            raise UserMistake(f"unknown advice '{advice}' (known: dontneed)")
        mm_mmap.do_madvise_dontneed(self._enter(), addr, length)

    def remap_file_pages(self, addr: int, length: int, offset: int, *, populate: bool = True) -> None:
        """Show at [addr, addr + length) of a shared file mapping what the file has from ``offset`` on, a multiple of
        the page size. ``populate``: bring the pages in. Raises SyscallError."""
        page = self.machine.page_size
        if offset % page:
            raise syscall_error(
                errno.EINVAL, f"offset {offset:#x} is not a multiple of the page size {page:#x}"
            )
        mm_fremap.do_remap_file_pages(self._enter(), addr, length, offset // page, populate=populate)

    def swap_out(self, addr: int, length: int) -> int:
        """Write the pages of a range out and free them, anonymous ones to the swap area; how many went."""
        return reclaim.do_swap_out(self._enter(), addr, length)

    def gup_fast(self, addr: int, write: bool = False) -> int:
        """The frame behind ``addr``, held until ``put``: found without locks where the architecture can.

        ``write``: to be stored to. Raises SegmentationFault, SyscallError.
        """
        return mm_gup.get_user_pages_fast(self._enter(), _address(addr), write)

    def poke(self, addr: int, data: bytes) -> None:
        """Store ``data``, within one page, as a debugger does: also where the program may not, into a copy of its own.

        Raises SegmentationFault, SyscallError.
        """
        page = self.machine.page_size
        if _address(addr) // page != (addr + len(data) - 1) // page:
            raise UserMistake(f"{len(data)} bytes at {addr:#x} are more than one page; store page by page")
        mm_gup.access_remote_vm(self._enter(), addr, data)

    def attach_device(self, *, sleeps: bool = False) -> DeviceHandle:
        """A device that uses this address space beside the CPUs, through translations of its own.

        ``sleeps``: it takes its time to stop using a range, so it must not be asked below a spinlock.
        """
        mm = self._enter()
        mmu = SecondaryMmu(mm, sleeps=sleeps)
        notifier.mmu_notifier_register(mm, mmu)
        return DeviceHandle(self.machine, mmu)

    def put(self, pfn: int) -> None:
        """Give back a frame that ``gup_fast`` gave; also after this address space has exited."""
        kernel = self.machine.kernel
        kernel.sched.cpu = self.machine.running_cpu(None)
        put_compound_page(kernel, pfn)

    def fork(self) -> Mm:
        """A child that shares every page copy-on-write."""
        return Mm(self.machine, mm_fork.dup_mm(self._enter()))

    def exec(self, *, arguments: int = 0, stack_shift: int = 0) -> Mm:
        """A fresh address space with a stack in place of this one, which this user gives up.

        ``arguments``: pages of the stack that are written at once; ``stack_shift``: bytes by which it then moves down.
        """
        if arguments < 0 or stack_shift < 0 or stack_shift % self.machine.page_size:
            raise UserMistake(f"arguments {arguments} and stack_shift {stack_shift}: give whole pages from 0")
        return Mm(
            self.machine,
            mm_exec.exec_mm(self.machine.kernel, self._enter(), arguments=arguments, stack_shift=stack_shift),
        )

    def exit(self) -> None:
        """Tear the address space down."""
        mm = self._enter()
        mm_life.mmput(mm)

    def is_mapped(self, addr: int) -> bool:
        """Whether some mapping covers ``addr``."""
        mm = self._enter()
        vma = vmas.find_vma(mm, addr)
        return vma is not None and vma.vm_start <= addr

    def mappings(self) -> list[tuple[int, int, str]]:
        """(start, end, rights) of every mapping, ascending."""
        return [
            (start, end, "".join(c for c, bit in RIGHTS.items() if flags & bit))
            for start, end, flags in mm_life.show_map(self._enter())
        ]


def rights_of(prot: str) -> int:
    """``"rw"`` -> VM_READ | VM_WRITE. Raises UserMistake for another letter."""
    flags = 0
    for letter in prot:
        if letter not in RIGHTS:
            raise UserMistake(f"unknown right '{letter}' in prot={prot!r}; use letters of 'rwx'")
        flags |= RIGHTS[letter]
    return flags


def assemble(machine: Machine, workload: str, workload_sha256: str, extra: dict[str, Any]) -> dict[str, Any]:
    """The JSON of ``polymmu run`` from a machine's counters."""
    kernel = machine.kernel
    if machine.sanitizer is not None:
        machine.sanitizer.finish()
    accesses = {"total": 0, "fetch": 0, "load": 0, "store": 0}
    tlbs: list[dict[str, Any]] = []
    events = kernel.cpus[0].translation.event_costs
    walk = dict.fromkeys(("count", "references", "cache_hits", "ad_updates", *events), 0)
    # Not the clocks: under the timed driver they have user cycles and waiting in them.
    cycles = sum(kernel.sched.spent_on.values())
    for cpu in kernel.cpus:
        counted = cpu.counters()
        for kind in ("fetch", "load", "store"):
            accesses[kind] += counted["accesses"][kind]
        tlbs += [
            {"name": name, "cpu": cpu.index, "level": machine.description.tlbs[name].level, **each}
            for name, each in counted["tlb"].items()
        ]
        for key in walk:
            walk[key] += counted["walk"][key]
        cycles += hardware_cycles(machine.description, cpu)
    accesses["total"] = accesses["fetch"] + accesses["load"] + accesses["store"]
    sections = machine.counters.sections()
    return {
        "schema": SCHEMA,
        "machine": machine.name,
        "arch": machine.arch.name,
        "page_size": machine.page_size,
        "workload": workload,
        "driver": kernel.sched.name,
        "accesses": accesses,
        "tlb": tlbs,
        "walk": walk,
        **sections,
        **swap_section(kernel.swap),
        "flushes": machine.flushes.section(),
        "latency": kernel.sched.latency(),
        "cycles": cycles,
        **({"elapsed": max(kernel.sched.clock)} if kernel.sched.name != "solo" else {}),
        "kernel_cycles": dict(sorted(kernel.sched.spent_on.items())),
        "violations": machine.sanitizer.section() if machine.sanitizer is not None else [],
        **extra,
        "provenance": {
            "version": version(),
            "machine_sha256": descriptions.sha256_of(machine.description),
            "workload_sha256": workload_sha256,
            "set": list(machine.sets),
        },
    }


def swap_section(area: SwapArea | None) -> dict[str, Any]:
    """The ``swap`` section of a report, where there is a swap area."""
    if area is None:
        return {}
    return {
        "swap": {"out": area.written, "in": area.read, "slots": area.slots - 1, "used": len(area.swap_map)}
    }


def hardware_cycles(description: MachineDescription, cpu: Cpu) -> int:
    """Cycles ``cpu`` spent on accesses and translation, from its counters and the machine file's costs."""
    costs, counted = description.costs, cpu.counters()
    total = sum(counted["accesses"].values()) * costs.access
    for name, tlb in counted["tlb"].items():
        spec = description.tlbs[name]
        total += tlb["hits"] * ((costs.tlb_hit if spec.level == 1 else 0) + spec.hit_cycles)
    walk = counted["walk"]
    total += walk["references"] * costs.walk_reference
    total += walk["cache_hits"] * costs.walk_cache_hit
    total += walk["ad_updates"] * costs.ad_update
    total += sum(walk[name] * cost for name, cost in cpu.translation.event_costs.items())
    return int(total)


def version() -> str:
    """Version of the installed distribution."""
    from importlib.metadata import version as installed_version

    return installed_version("polymmu")
