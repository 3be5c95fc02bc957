"""Make a kernel's shared words visible: every access to one becomes an operation that the picker may come before.

Nothing of this is in the mm core. It reads table entries through ``Ram`` and changes them through the arch's hooks,
and both are values that were plugged in: here they are replaced by ones that first ask the driver.

What is read below a spinlock is no point of its own: whoever could change it meanwhile has to wait for the lock, and
the lock's own operation stands for it; so whoever changes a pte without its table's lock is a race. What is *written*
below one is a point, for hardware and walkers without locks read at any time.

Hardware may fetch a translation at any moment. The worst moment is just before the kernel takes the entry away, so
with ``speculate`` every CPU that has the tables loaded does that then: whoever frees a page before all have
forgotten it is caught in this one execution. Without it CPUs only hold what programs used; both are worth exploring.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from polymmu.hardware.cpu import Cpu
from polymmu.hardware.ram import Ram
from polymmu.hooks import ArchKernel, ArchOps
from polymmu.registry import HOOKS, Resolved
from polymmu.sched.access import Mode
from polymmu.sched.exploring import ExploringSched
from polymmu.sched.user import UserCode
from polymmu.structs import mm_struct, vm_area_struct

__all__ = ["WatchedCode", "WatchedRam", "watch"]

T = TypeVar("T")


class WatchedRam(Ram):
    """Memory whose table entries are read and written as visible operations."""

    sched: ExploringSched
    page_shift: int

    def read_entry(self, pa: int, nbytes: int, order: str) -> int:
        sched = self.sched
        if sched.watches:
            if not sched.preempt_count and not sched.is_at("read", pa):
                sched.point("read", pa)
            elif sched.tells:
                sched.did(Mode.READ, pa)
            if sched.tells:
                sched.did(Mode.READ, ("frame", pa >> self.page_shift))
        return super().read_entry(pa, nbytes, order)

    def write_entry(self, pa: int, nbytes: int, order: str, entry: int) -> None:
        sched = self.sched
        if not sched.watches:
            Ram.write_entry(self, pa, nbytes, order, entry)
            return

        def write() -> Callable[[], None]:
            before = Ram.read_entry(self, pa, nbytes, order)
            Ram.write_entry(self, pa, nbytes, order, entry)
            return lambda: Ram.write_entry(self, pa, nbytes, order, before)

        if not sched.is_at("write", pa):
            sched.point("write", pa)
        sched.store(pa, write)


class WatchedCpu(Cpu):
    """A CPU whose root register is loaded as an operation."""

    sched: ExploringSched
    shootdown: bool

    def load_root(self, root_pa: int, asid: int = 0, space: int | None = None) -> None:
        if self.shootdown or self.sched.buffers is not None:
            self.sched.point("load_root", self)
        self.sched.did(Mode.WRITE, ("root", self.index))
        super().load_root(root_pa, asid, space)


class WatchedCode(UserCode):
    """Programs whose accesses say what they read: the CPU's TLB, the entries on the way, the frame that these lead to,
    and what hardware noted."""

    def _run(self, work: Callable[..., T], *args: Any) -> T:
        va: int = args[0]
        sched = self._sched
        assert isinstance(sched, ExploringSched)
        if sched.choice("tlb_eviction"):
            self.cpu.invalidate(asid=None, start=va, walk_caches="none")

        def noted(*args: Any) -> T:
            before, frame = self._entries(va)
            sched.did(Mode.ADD, ("tlb", self.cpu.index))  # it fills the TLB, as speculation does
            for entry in before:
                sched.did(Mode.READ, entry)
            if frame >= 0:
                sched.did(Mode.READ, ("frame", frame))
            done = work(*args)
            for entry, value in self._entries(va)[0].items():
                if before.get(entry, value) != value:
                    sched.did(Mode.WRITE, entry)
            return done

        return super()._run(noted, *args)

    def _entries(self, va: int) -> tuple[dict[int, int], int]:
        """Every entry that a walk for ``va`` reads now, by its address; and the frame that it finds, or -1."""
        sched, ram = self._sched, self.cpu.ram
        assert isinstance(sched, ExploringSched)
        assert isinstance(ram, WatchedRam)
        if self.cpu.root < 0:
            return {}, -1
        outer, sched.watches = sched.watches, False
        walk = self.cpu.translate(va)
        sched.watches = outer
        return {place: entry for _, place, entry in walk.path}, -1 if walk.pa is None else (
            walk.pa >> ram.page_shift
        )


def silently(sched: ExploringSched, *functions: Callable[..., None]) -> Callable[..., None]:
    """``functions``, one after another, which only look: what they read is no operation."""

    def look(*args: object) -> None:
        outer, sched.watches = sched.watches, False
        for function in functions:
            function(*args)
        sched.watches = outer

    return look


def watch(
    kernel: ArchKernel,
    sched: ExploringSched,
    programs: Sequence[UserCode],
    *,
    race: Callable[[Hashable, str], None],
    speculate: bool,
    shootdown: bool,
) -> None:
    """Make the shared words of ``kernel``, which no task has run on yet, visible to ``sched``. ``race`` is told of a
    pte that is changed without its lock."""
    kernel.ram.__class__ = WatchedRam
    ram = cast(WatchedRam, kernel.ram)
    ram.sched, ram.page_shift = sched, kernel.frames.page_shift
    for program in programs:
        program.__class__ = WatchedCode
    for cpu in kernel.cpus:
        if cpu.to_user is not None:
            cpu.to_user = silently(sched, cpu.to_user)
        cpu.__class__ = WatchedCpu
        watched = cast(WatchedCpu, cpu)
        watched.sched, watched.shootdown = sched, shootdown
    ops = kernel.ops
    plain = {name: getattr(ops, name) for name in HOOKS}
    kernel.ops = cast(ArchOps, Resolved(plain | _visible(kernel, sched, ops, race, speculate, shootdown)))


def _visible(
    kernel: ArchKernel,
    sched: ExploringSched,
    ops: ArchOps,
    race: Callable[[Hashable, str], None],
    speculate: bool,
    shootdown: bool,
) -> dict[str, Callable[..., Any]]:
    """The hooks that change entries, or keep others from doing so, as operations."""
    width = kernel.shape.layout.entry_bytes[-1]
    shift = kernel.shape.layout.page_shift

    def about_to_write(mm: mm_struct, ptep: int, n: int) -> None:
        if sched.tells:
            lock = kernel.variants.page_table_lock.lock_of(mm, ptep & mm.layout.pte_table_mask)
            if not (lock.held and lock.owner is sched.context):
                race(ptep, f"is changed without its {lock.name}")
        sched.point("write", ptep)
        for index in range(1, n):
            sched.did(Mode.WRITE, ptep + index * width)

    def about_to_take(mm: mm_struct, addr: int, ptep: int, n: int) -> None:
        sched.atomic()
        about_to_write(mm, ptep, n)
        hardware_fetches(mm, addr, n)

    def hardware_fetches(mm: mm_struct, addr: int, n: int) -> None:
        if not speculate or not sched.watches:
            return
        for page in range(n):
            everybody_fetches(mm, addr + (page << shift))

    def everybody_fetches(mm: mm_struct, addr: int, *, is_table: bool = False) -> None:
        for cpu in kernel.cpus:
            if sched.tells:
                sched.did(Mode.READ, ("runs", cpu.index, mm.slot))
                if shootdown:
                    sched.did(Mode.READ, ("root", cpu.index))
            if cpu.space == mm.serial:
                if shootdown:
                    sched.did(Mode.ADD, ("tlb", cpu.index))
                fetch = cpu.speculate_tables if is_table and shootdown else cpu.speculate
                fetch(addr)

    def set_pte(mm: mm_struct, addr: int, ptep: int, values: Any) -> None:
        values = values.copy()  # whoever comes first may use the same array, which is the kernel's
        if sched.buffers is not None and len(values) > 1:
            for n in range(len(values)):  # each is a store of its own
                set_pte(mm, addr + (n << shift), ptep + n * width, values[n : n + 1])
            return
        about_to_write(mm, ptep, len(values))
        ops.set_pte(mm, addr, ptep, values)

    def ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, n: int, tlb: Any) -> Any:
        about_to_take(mm, addr, ptep, n)
        return ops.ptep_get_and_clear(mm, addr, ptep, n, tlb)

    def ptep_clear_flush(vma: vm_area_struct, addr: int, ptep: int, n: int) -> Any:
        about_to_take(vma.vm_mm, addr, ptep, n)
        return ops.ptep_clear_flush(vma, addr, ptep, n)

    def set_wrprotect(mm: mm_struct, addr: int, ptep: int, n: int) -> None:
        about_to_take(mm, addr, ptep, n)
        ops.set_wrprotect(mm, addr, ptep, n)

    def set_access_flags(vma: vm_area_struct, addr: int, ptep: int, value: int) -> bool:
        about_to_write(vma.vm_mm, ptep, 1)
        return ops.set_access_flags(vma, addr, ptep, value)

    def huge_ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, size: int) -> int:
        sched.atomic()
        sched.point("write", ptep)
        return ops.huge_ptep_get_and_clear(mm, addr, ptep, size)

    def clear_entry(mm: mm_struct, level: int, addr: int, entry: int) -> None:
        sched.point("write", entry)
        if speculate and sched.runs_tasks:
            everybody_fetches(mm, addr, is_table=True)
            sched.before_drain = partial(everybody_fetches, mm, addr, is_table=True)
        ops.clear_entry(mm, level, addr, entry)

    def populate(mm: mm_struct, level: int, addr: int, entry: int, table: int) -> None:
        sched.point("write", entry)
        ops.populate(mm, level, addr, entry, table)

    def switch_mm(cpu: Cpu, prev: mm_struct | None, following: mm_struct) -> None:
        sched.switching(cpu, True)
        ops.switch_mm(cpu, prev, following)
        sched.switching(cpu, False)
        for mm in (prev, following):
            if mm is not None:  # from now on hardware may fetch what it maps, or no more
                sched.did(Mode.WRITE, ("runs", cpu.index, mm.slot))

    def gup_fast_begin(cpu: Any, mm: mm_struct) -> bool:
        sched.point("gup_begin", cpu)
        answer = ops.gup_fast_begin(cpu, mm)
        if not cpu.interrupts_enabled:  # that is the arch's affair
            sched.did(Mode.ACQUIRE, cpu)
        return answer

    def gup_fast_end(cpu: Any, mm: mm_struct) -> None:
        sched.point("gup_end", cpu)
        if not cpu.interrupts_enabled:
            sched.did(Mode.RELEASE, cpu)
        ops.gup_fast_end(cpu, mm)

    return {
        function.__name__: function
        for function in (
            set_pte,
            ptep_get_and_clear,
            ptep_clear_flush,
            set_wrprotect,
            set_access_flags,
            huge_ptep_get_and_clear,
            clear_entry,
            populate,
            switch_mm,
            gup_fast_begin,
            gup_fast_end,
        )
    }
