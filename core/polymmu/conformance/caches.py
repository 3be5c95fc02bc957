"""What CPUs remember: no translation outlives what it came from.

``Tlb``: after each kind of change, on every CPU, at every size. ``Contexts``: programs never see each other's pages,
however often address-space numbers are used again. All is seen by behaviour: an access that should fault, bytes
that should have changed; then the flush audit is asked as well.
"""

from __future__ import annotations

from polymmu.conformance.bench import Bench, NotApplicable, World, require
from polymmu.conformance.checks import Checks
from polymmu.machine import Mm

__all__ = ["Contexts", "Tlb"]

NUMBERS = 33_000
"""Contexts made and given up one after another: more than numbers of 15 bits."""

RUNS = (1, 2, 3, 40, 70)
"""Pages in one change: single ones, a few, and more than one-by-one invalidation is usually worth."""


def filled(world: World, mm: Mm, pages: int, at: int | None = None) -> int:
    """A mapping of ``pages`` pages, each in the TLBs of both CPUs for loads and stores; page n holds byte n + 1."""
    va = mm.mmap(pages * world.page, "rw", at=at, fixed=at is not None)
    for n in range(pages):
        world.cpus[0].store(va + n * world.page, bytes([n % 255 + 1]))
    for cpu in world.cpus:
        for n in range(pages):
            cpu.store(va + n * world.page + 1, b"!")
    return va


class Tlb(Checks):
    """Invalidation by scope, seen from every CPU."""

    def test_unmapped_pages_are_out_of_reach_of_every_cpu(self, bench: Bench) -> None:
        for pages in RUNS:
            for by in (0, 1):
                world = bench.world()
                mm = world.program()
                va = filled(world, mm, pages + 2)
                with world.cpus[by]:
                    mm.munmap(va + world.page, pages * world.page)
                for cpu in (0, 1):
                    for n in range(1, pages + 1):
                        for access in ("load", "store"):
                            require(
                                not world.allows(cpu, access, va + n * world.page),
                                f"cpu {cpu} can {access} page {n} of {pages} after munmap on cpu {by}",
                            )
                    require(world.cpus[cpu].load(va, 2) == b"\1!", f"cpu {cpu}: the page below was changed")
                world.check_quiet(f"after munmap of {pages} pages on cpu {by}")

    def test_unmapped_pages_are_out_of_reach_at_every_edge(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        for window in bench.windows():
            for start in (window.start, window.end - 4 * world.page):
                va = filled(world, mm, 4, at=start)
                mm.munmap(va, 4 * world.page)
                for cpu in (0, 1):
                    for n in range(4):
                        require(
                            not world.allows(cpu, "load", va + n * world.page),
                            f"cpu {cpu} can load {va + n * world.page:#x} after munmap",
                        )
        world.check_quiet("after munmap at every edge")

    def test_a_place_used_again_shows_its_new_pages(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        for window in bench.windows():
            for turn in range(3):
                va = filled(world, mm, 3, at=window.start)
                with world.cpus[turn % 2]:
                    mm.munmap(va, 3 * world.page)
                other = mm.mmap(8 * world.page)  # takes the freed frames, tables among them
                for n in range(8):
                    world.cpus[0].store(other + n * world.page, b"\xff" * 64)
                mm.mmap(3 * world.page, at=window.start, fixed=True)
                for cpu in (0, 1):
                    for n in range(3):
                        require(
                            world.cpus[cpu].load(va + n * world.page, 2) == b"\0\0",
                            f"cpu {cpu} reads an old page at {va + n * world.page:#x}, mapped anew",
                        )
                mm.munmap(va, 3 * world.page)
                mm.munmap(other, 8 * world.page)
                world.check_quiet("after mapping a place anew")

    def test_write_rights_taken_from_a_range_are_gone_on_every_cpu(self, bench: Bench) -> None:
        for pages in RUNS:
            for by in (0, 1):
                world = bench.world()
                mm = world.program()
                va = filled(world, mm, pages + 2)
                with world.cpus[by]:
                    mm.mprotect(va + world.page, pages * world.page, "r")
                for cpu in (0, 1):
                    for n in range(pages + 2):
                        inside = 1 <= n <= pages
                        require(
                            world.allows(cpu, "store", va + n * world.page) != inside,
                            f"cpu {cpu}: store to page {n} after mprotect of pages 1 to {pages} on cpu {by}",
                        )
                world.check_quiet(f"after mprotect of {pages} pages")

    def test_fork_takes_write_rights_from_every_cpu(self, bench: Bench) -> None:
        for by in (0, 1):
            world = bench.world()
            mm = world.program()
            va = filled(world, mm, 20)
            with world.cpus[by]:
                child = mm.fork()
            for cpu in (0, 1):
                for n in range(20):
                    world.cpus[cpu].store(va + n * world.page, b"parent")
            world.check_quiet("after fork")
            world.run(child, 1)
            for n in range(20):
                got = world.cpus[1].load(va + n * world.page, 2)
                require(
                    got == bytes([n + 1]) + b"!",
                    f"the child reads {got!r} in page {n}, which the parent wrote",
                )

    def test_moved_pages_are_found_at_the_new_place_only(self, bench: Bench) -> None:
        layout = bench.shape.layout
        block = min(layout.entries_of(layout.pte_level), 1024)
        for pages, aligned in ((1, False), (70, False), (block, True)):
            world = bench.world()
            mm = world.program()
            span = layout.span_of(layout.pmd_level)
            away = (pages * world.page // span + 2) * span
            room = mm.mmap(2 * away + span, "")
            low = (room + span - 1) & -span
            offset = 0 if aligned else world.page
            old, new = low + offset, low + away + offset
            mm.munmap(room, 2 * away + span)
            filled(world, mm, pages, at=old)
            mm.mremap(old, pages * world.page, pages * world.page, to=new)
            for cpu in (0, 1):
                for n in range(pages):
                    require(
                        not world.allows(cpu, "load", old + n * world.page),
                        f"cpu {cpu} still finds page {n} of {pages} where it was before mremap",
                    )
                    got = world.cpus[cpu].load(new + n * world.page, 2)
                    require(
                        got == bytes([n % 255 + 1]) + b"!",
                        f"cpu {cpu} reads {got!r} in moved page {n} of {pages}",
                    )
            world.check_quiet("after mremap")
            mm.exit()

    def test_dropped_pages_come_back_as_zeroes(self, bench: Bench) -> None:
        for pages in RUNS:
            world = bench.world()
            mm = world.program()
            va = filled(world, mm, pages)
            mm.madvise(va, pages * world.page, "dontneed")
            for cpu in (0, 1):
                for n in range(pages):
                    require(
                        world.cpus[cpu].load(va + n * world.page, 2) == b"\0\0",
                        f"cpu {cpu} reads dropped page {n}",
                    )
            world.check_quiet("after madvise")

    def test_a_truncated_file_is_out_of_reach_of_every_program(self, bench: Bench) -> None:
        world = bench.world()
        file = world.machine.new_file(4 * world.page)
        here, there = world.program(0), world.program(1)
        places = [mm.mmap(4 * world.page, "rw", shared=True, file=file) for mm in (here, there)]
        for cpu in (0, 1):
            for n in range(4):
                world.cpus[cpu].store(places[cpu] + n * world.page, b"file")
        file.truncate(2 * world.page)
        for cpu in (0, 1):
            for n in range(4):
                require(
                    world.allows(cpu, "load", places[cpu] + n * world.page) == (n < 2),
                    f"cpu {cpu}: page {n} of a file cut down to two pages",
                )
        world.check_quiet("after truncate")

    def test_one_page_flushed_is_flushed_on_every_cpu(self, bench: Bench) -> None:
        for by in (0, 1):
            for width in (1, 2, 40, 0):
                world = bench.world()
                mm = world.program()
                va = filled(world, mm, 64)
                kernel, ops = world.kernel, world.kernel.ops
                kernel.sched.cpu = kernel.cpus[by]
                vma = world.vma(mm, va)
                first, n = (3, width) if width else (0, 64)
                low = va + first * world.page
                old = [world.frame(mm, low + k * world.page) for k in range(n)]
                runs = [(k, 1) for k in range(n)] if width == 1 else self._runs(world, mm, low, n)
                for k, length in runs:
                    ops.set_wrprotect(
                        mm.struct, low + k * world.page, world.ptep(mm, low + k * world.page), length
                    )
                if width == 1:
                    ops.flush_tlb_page(vma, low)
                elif width:
                    ops.flush_tlb_range(vma, low, low + n * world.page)
                else:
                    ops.flush_tlb_mm(mm.struct)
                for cpu in kernel.cpus:
                    stale = cpu.count_stale(None, cpu.root, low, low + n * world.page)
                    require(
                        not stale,
                        f"cpu {cpu.index} holds {stale} stale entries after a flush of {n} on {by}",
                    )
                require(
                    old == [world.frame(mm, low + k * world.page) for k in range(n)],
                    "set_wrprotect changed a frame",
                )

    @staticmethod
    def _runs(world: World, mm: Mm, low: int, n: int) -> list[tuple[int, int]]:
        """[0, n) pages from ``low`` on cut where their ptes are not in one table: (first, length)."""
        per = world.kernel.shape.layout.entries_of(-1)
        runs, k = [], 0
        while k < n:
            length = min(n - k, per - ((low // world.page + k) % per))
            runs.append((k, length))
            k += length
        return runs


class Contexts(Checks):
    """Address spaces and their numbers."""

    def test_programs_that_take_turns_see_their_own_pages(self, bench: Bench) -> None:
        world = bench.world()
        va = world.program().mmap(4 * world.page)
        programs = [world.program(0) for _ in range(9)]
        for n, mm in enumerate(programs):
            mm.mmap(4 * world.page, at=va, fixed=True)
            world.run(mm, n % 2)
            for page in range(4):
                got = world.cpus[n % 2].load(va + page * world.page, 1)
                require(got == b"\0", f"program {n} reads {got!r} in a page it never touched")
                world.cpus[n % 2].store(va + page * world.page, bytes([n + 1]))
        for turn in range(3):
            for n, mm in enumerate(programs):
                for cpu in (turn % 2, 1 - turn % 2):
                    world.run(mm, cpu)
                    for page in range(4):
                        got = world.cpus[cpu].load(va + page * world.page, 1)
                        require(
                            got == bytes([n + 1]), f"cpu {cpu}: program {n} reads {got!r}, another's page"
                        )
                    world.check_quiet(f"program {n} on cpu {cpu}")

    def test_a_program_that_left_a_cpu_comes_back_to_its_present_pages(self, bench: Bench) -> None:
        for change in ("munmap", "mprotect", "fork", "mremap", "dontneed"):
            world = bench.world()
            mm = world.program()
            va = filled(world, mm, 6)
            other = world.program(1)
            child = None
            with world.cpus[0]:
                if change == "munmap":
                    mm.munmap(va, 6 * world.page)
                elif change == "mprotect":
                    mm.mprotect(va, 6 * world.page, "r")
                elif change == "mremap":
                    mm.mremap(va, 6 * world.page, 6 * world.page, to=mm.mmap(6 * world.page))
                elif change == "fork":
                    child = mm.fork()
                else:
                    mm.madvise(va, 6 * world.page, "dontneed")
            world.run(mm, 1)
            for n in range(6):
                place = va + n * world.page
                if change in ("munmap", "mremap"):
                    require(
                        not world.allows(1, "load", place),
                        f"cpu 1 comes back and finds page {n} despite {change}",
                    )
                elif change == "mprotect":
                    require(not world.allows(1, "store", place), f"cpu 1 comes back and can write page {n}")
                elif change == "dontneed":
                    require(
                        world.cpus[1].load(place, 2) == b"\0\0",
                        f"cpu 1 comes back and reads dropped page {n}",
                    )
                else:
                    world.cpus[1].store(place, b"parent")
            if child is not None:
                world.run(child, 1)
                for n in range(6):
                    got = world.cpus[1].load(va + n * world.page, 1)
                    require(
                        got == bytes([n + 1]), f"the child reads {got!r} in page {n} that the parent wrote"
                    )
            world.check_quiet(f"after coming back from {change}")
            other.exit()

    def test_a_number_used_again_finds_nothing_of_its_last_owner(self, bench: Bench) -> None:
        world = bench.world()
        place = world.program()
        va = place.mmap(2 * world.page)
        place.exit()
        for turn in range(40):
            mm = world.program(turn % 2)
            mm.mmap(2 * world.page, at=va, fixed=True)
            for page in (0, 1):
                got = world.cpus[turn % 2].load(va + page * world.page, 8)
                require(got == bytes(8), f"program {turn} reads {got!r} in fresh memory, a dead program's")
                world.cpus[turn % 2].store(va + page * world.page, b"%8d" % turn)
            mm.exit()

    def test_many_programs_at_once_keep_apart(self, bench: Bench) -> None:
        world = bench.world()
        first = world.program(0)
        va = first.mmap(world.page)
        programs = [first]
        world.cpus[0].store(va, b"%8d" % 0)
        for n in range(1, 150):
            mm = world.program(n % 2)
            mm.mmap(world.page, at=va, fixed=True)
            world.cpus[n % 2].store(va, b"%8d" % n)
            programs.append(mm)
        for n, mm in enumerate(programs):
            world.run(mm, n // 2 % 2)
            got = world.cpus[n // 2 % 2].load(va, 8)
            require(got == b"%8d" % n, f"program {n} of 150 reads {got!r}")

    def test_numbers_do_not_run_out(self, bench: Bench) -> None:
        if "destroy_context" not in bench.arch.implementations:
            raise NotApplicable("it has no numbers to give back")
        world = bench.world()
        mm = world.program(0)
        va = mm.mmap(world.page)
        ops, cpu, struct = bench.arch.ops, world.kernel.cpus[0], mm.struct
        for _ in range(NUMBERS):
            ops.destroy_context(struct)
            ops.init_new_context(struct, None)
            ops.switch_mm(cpu, struct, struct)
        world.cpus[0].store(va, b"x")
        mm.exit()

    def test_running_mms_are_told_apart_by_tag_or_by_flush(self, bench: Bench) -> None:
        world = bench.world()
        cpu = world.kernel.cpus[0]
        here = world.program()
        va = filled(world, here, 3)
        there = world.program(0)
        there.mmap(3 * world.page, at=va, fixed=True)
        for n in range(3):
            stale = cpu.count_stale(None, cpu.root, va + n * world.page, va + (n + 1) * world.page)
            require(
                not stale, "a program that has just been switched to can use its predecessor's translations"
            )

    def test_a_cpu_that_left_for_the_kernel_is_out_of_every_mask(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        require(
            mm.struct.cpu_mask == 0b11 or not uses_mask(bench),
            f"both CPUs run the program, its cpu_mask is {mm.struct.cpu_mask:#b}",
        )
        mm.exit()
        for cpu in world.kernel.cpus:
            require(
                world.kernel.active_mm[cpu.index] is world.kernel.init_mm,
                f"cpu {cpu.index} still runs a dead mm",
            )

    def test_what_is_lazily_kept_is_out_of_reach_after_exit(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        va = filled(world, mm, 4)
        child = mm.fork()
        with world.cpus[1]:
            mm.exit()
        world.run(child, 0, 1)
        for cpu in (0, 1):
            for n in range(4):
                got = world.cpus[cpu].load(va + n * world.page, 1)
                require(got == bytes([n + 1]), f"cpu {cpu}: the child reads {got!r} after its parent's exit")
                world.cpus[cpu].store(va + n * world.page, bytes([n + 1]))
        child.exit()


def uses_mask(bench: Bench) -> bool:
    """Whether this arch's flushes go by ``cpu_mask``; broadcast flushes need not."""
    world = bench.world()
    mm = world.program()
    va = filled(world, mm, 2)
    mm.munmap(va, 2 * world.page)
    return bool(world.machine.report().to_dict()["shootdown"]["ipis"])
