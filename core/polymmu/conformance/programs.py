"""What programs see: who sees whose stores, which pages were used and which were written.

``Sharing``: fork, files, shared memory, and calls that fail half-way. ``Notes``: accessed and dirty.
"""

from __future__ import annotations

from polymmu.conformance.bench import Bench, NotApplicable, require
from polymmu.conformance.caches import filled
from polymmu.conformance.checks import Checks
from polymmu.errors import SyscallError
from polymmu.machine import Mm
from polymmu.mm.frames import put_page
from polymmu.mm.pagecache import find_or_read_page
from polymmu.structs import PG_DIRTY

__all__ = ["Notes", "Sharing"]


class Sharing(Checks):
    """Who sees whose stores."""

    def test_parent_and_child_do_not_see_each_others_stores(self, bench: Bench) -> None:
        world = bench.world()
        parent = world.program(0)
        va = parent.mmap(30 * world.page)
        for n in range(30):
            world.cpus[0].store(va + n * world.page, b"before")
        child = parent.fork()
        world.run(child, 1)
        for n in range(30):
            writer = n % 2
            world.cpus[writer].store(va + n * world.page, b"writer")
            got = world.cpus[1 - writer].load(va + n * world.page, 6)
            require(
                got == b"before", f"page {n}: cpu {1 - writer} reads {got!r}, written by the other program"
            )
            world.cpus[1 - writer].store(va + n * world.page, b"second")
            got = world.cpus[writer].load(va + n * world.page, 6)
            require(got == b"writer", f"page {n}: cpu {writer} reads {got!r} instead of its own store")
        world.check_quiet("after fork and stores on both sides")

    def test_shared_memory_is_shared(self, bench: Bench) -> None:
        world = bench.world()
        parent = world.program(0)
        va = parent.mmap(4 * world.page, shared=True)
        world.cpus[0].store(va, b"early")
        child = parent.fork()
        world.run(child, 1)
        for n in range(4):
            world.cpus[n % 2].store(va + n * world.page, b"%4d" % n)
            require(
                world.cpus[1 - n % 2].load(va + n * world.page, 4) == b"%4d" % n, f"page {n} is not shared"
            )

    def test_a_private_store_to_a_file_stays_private(self, bench: Bench) -> None:
        world = bench.world()
        file = world.machine.new_file(4 * world.page)
        here, there = world.program(0), world.program(1)
        mine = here.mmap(4 * world.page, file=file)
        seen = there.mmap(4 * world.page, file=file, shared=True)
        for n in range(4):
            require(world.cpus[0].load(mine + n * world.page, 1) == b"\0", "a fresh file is not zero")
        for n in range(4):
            world.cpus[0].store(mine + n * world.page, b"mine")
            require(
                world.cpus[1].load(seen + n * world.page, 4) == bytes(4), f"page {n} of the file was changed"
            )
            world.cpus[1].store(seen + n * world.page, b"file")
            require(
                world.cpus[0].load(mine + n * world.page, 4) == b"mine",
                f"the private copy of page {n} is gone",
            )

    def test_without_memory_for_tables_a_call_fails_and_nothing_is_lost(self, bench: Bench) -> None:
        world = bench.world()
        before = world.held()
        for n in range(12):
            world.kernel.free.fail_next = FailAt(n)
            mm: Mm | None = None
            try:
                mm = world.program()
                for window in bench.windows()[:3]:
                    va = mm.mmap(world.page, at=window.start, fixed=True)
                    world.cpus[0].store(va, b"x")
                mm.fork().exit()
            except (SyscallError, MemoryError):
                pass
            finally:
                world.kernel.free.fail_next = None
            if mm is not None:
                mm.exit()
            require(world.held() == before, f"after failure {n}: held before {before}, now {world.held()}")


class FailAt:
    """Makes the ``n``-th allocation of a table fail."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, what: str) -> bool:
        if not what.startswith("table."):
            return False
        self.left -= 1
        return self.left == -1


class Notes(Checks):
    """Accessed and dirty."""

    def test_a_stored_page_of_a_file_is_found_dirty(self, bench: Bench) -> None:
        for stored in (False, True):
            for by in (0, 1):
                world = bench.world()
                file = world.machine.new_file(world.page)
                mm = world.program()
                va = mm.mmap(world.page, "rw", shared=True, file=file)
                world.cpus[0].load(va, 1)
                world.cpus[1].load(va, 1)
                pfn = find_or_read_page(world.kernel, file.file, 0)
                put_page(world.kernel, pfn)
                flags = world.kernel.frames.flags
                flags[pfn] &= ~PG_DIRTY
                if stored:
                    world.cpus[by].store(va, b"d")
                mm.munmap(va, world.page)
                dirty = bool(flags[pfn] & PG_DIRTY)
                require(
                    dirty == stored,
                    f"a page {'stored to' if stored else 'only loaded'} on cpu {by} is {'' if dirty else 'not '}dirty",
                )

    def test_a_store_after_a_load_is_noted_on_every_page_of_a_run(self, bench: Bench) -> None:
        world = bench.world()
        pages = 20
        file = world.machine.new_file(pages * world.page)
        mm = world.program()
        va = mm.mmap(pages * world.page, "rw", shared=True, file=file)
        pfns = []
        for n in range(pages):
            world.cpus[0].load(va + n * world.page, 1)
            pfns.append(world.frame(mm, va + n * world.page))
        flags = world.kernel.frames.flags
        for pfn in pfns:
            flags[pfn] &= ~PG_DIRTY
        for n in range(0, pages, 3):
            world.cpus[0].store(va + n * world.page, b"d")
        mm.munmap(va, pages * world.page)
        found = [n for n, pfn in enumerate(pfns) if flags[pfn] & PG_DIRTY]
        require(found == list(range(0, pages, 3)), f"pages 0, 3, 6, ... were stored to, found dirty: {found}")

    def test_mprotect_keeps_what_was_noted(self, bench: Bench) -> None:
        world = bench.world()
        file = world.machine.new_file(world.page)
        mm = world.program()
        va = mm.mmap(world.page, "rw", shared=True, file=file)
        world.cpus[0].load(va, 1)
        pfn = world.frame(mm, va)
        world.cpus[0].store(va, b"d")
        world.kernel.frames.flags[pfn] &= ~PG_DIRTY
        mm.mprotect(va, world.page, "r")
        mm.munmap(va, world.page)
        require(bool(world.kernel.frames.flags[pfn] & PG_DIRTY), "mprotect forgot that the page was written")

    def test_used_pages_are_found_young_once(self, bench: Bench) -> None:
        if not bench.has_accessed:
            raise NotApplicable("nobody notes which pages were used")
        world = bench.world()
        mm = world.program()
        va = filled(world, mm, 5)
        kernel = world.kernel
        vma = world.vma(mm, va)

        def young(n: int) -> int:
            place = va + n * world.page
            found = kernel.ops.test_and_clear_young(vma, place, world.ptep(mm, place), 1)
            kernel.ops.flush_tlb_page(vma, place)  # as who asks does (Linux: ptep_clear_flush_young)
            return found

        for n in range(5):
            require(young(n) == 1, f"page {n} was used and is not found young")
            require(young(n) == 0, f"page {n} is young again without being used")
        for cpu in kernel.cpus:
            cpu.invalidate(asid=None, include_global=True, walk_caches="all")
        world.cpus[1].load(va + 2 * world.page, 1)
        found = [n for n in range(5) if young(n)]
        require(found == [2], f"page 2 was used again, young are {found}")
        for n in range(5):
            require(
                world.cpus[0].load(va + n * world.page, 2) == bytes([n + 1]) + b"!", f"page {n} was changed"
            )
