"""``HugePages``: where they are allowed they are one page, elsewhere refused, and freed by the right path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from polymmu.conformance.bench import ACCESSES, Bench, NotApplicable, require, tables_in_memory
from polymmu.conformance.caches import filled
from polymmu.conformance.checks import Checks
from polymmu.errors import SyscallError
from polymmu.hardware.entry import Access, Privilege
from polymmu.machine import Mm

__all__ = ["HugePages"]


class HugePages(Checks):
    """Huge pages where they are allowed, refused where not, freed by the right path."""

    def test_a_huge_page_is_one_page(self, bench: Bench) -> None:
        for size in sizes_of(bench):
            world = bench.world(memory=8 * size)
            before = world.held()
            mm = world.program()
            va = huge_map(mm, 2 * size, size)
            require(va % size == 0, f"a mapping of {size:#x} pages lies at {va:#x}")
            world.cpus[0].store(va + size - 4, b"straddle")
            require(
                world.cpus[1].load(va + size - 4, 8) == b"straddle",
                f"a page of {size:#x} bytes reads otherwise",
            )
            for place in (va, va + size // 2, va + 2 * size - 8):
                world.cpus[0].store(place, b"%8x" % (place % 0xFFFFFFF))
            for place in (va, va + size // 2, va + 2 * size - 8):
                require(
                    world.cpus[1].load(place, 8) == b"%8x" % (place % 0xFFFFFFF),
                    f"{place:#x} in a page of {size:#x}",
                )
            cpu = world.kernel.cpus[0]
            walk = cpu.translation.walk(
                world.kernel.ram, cpu.root, va + size, Access.LOAD, Privilege.USER, cpu.asid
            )
            require(
                walk.page_size == size,
                f"the page of {size:#x} at {va + size:#x} walks as {walk.page_size:#x}",
            )
            mm.munmap(va, 2 * size)
            for cpu_index in (0, 1):
                for place in (va, va + size // 2, va + 2 * size - 8):
                    require(
                        not world.allows(cpu_index, "load", place), f"{place:#x} is in reach after munmap"
                    )
            world.check_quiet("after munmap of huge pages")
            mm.exit()
            require(world.held() == before, f"held before {before}, after {world.held()}")

    def test_huge_pages_work_wherever_they_are_accepted(self, bench: Bench) -> None:
        for size in sizes_of(bench):
            for at in huge_places(bench, size):
                world = bench.world(memory=8 * size)
                before = world.held()
                mm = world.program()
                try:
                    mm.mmap(3 * size, "rw", at=at, fixed=True, huge=size)
                except SyscallError:
                    continue
                for n in range(3):
                    world.cpus[0].store(at + n * size, b"%8d" % n)
                    world.cpus[0].store(at + (n + 1) * size - 8, b"%8d" % -n)
                mm.munmap(at + size, size)
                for cpu in (0, 1):
                    require(
                        not world.allows(cpu, "load", at + size), f"{at + size:#x} is in reach after munmap"
                    )
                    for n in (0, 2):
                        got = (
                            world.cpus[cpu].load(at + n * size, 8),
                            world.cpus[cpu].load(at + (n + 1) * size - 8, 8),
                        )
                        require(
                            got == (b"%8d" % n, b"%8d" % -n),
                            f"the huge page at {at + n * size:#x} holds {got}",
                        )
                mm.mmap(size, "rw", at=at + size, fixed=True, huge=size)
                got = world.cpus[0].load(at + size, 8), world.cpus[1].load(at + 2 * size - 8, 8)
                require(got == (bytes(8), bytes(8)), f"a new huge page at {at + size:#x} holds {got}")
                world.check_quiet("after munmap between huge pages")
                mm.munmap(at, 3 * size)
                world.check_quiet("after munmap of huge pages")
                require(
                    not mm.struct.nr_tables[-1], f"huge pages at {at:#x} left tables {mm.struct.nr_tables}"
                )
                mm.exit()
                require(world.held() == before, f"held before {before}, after {world.held()}")

    def test_huge_pages_are_copied_when_written(self, bench: Bench) -> None:
        for size in sizes_of(bench):
            world = bench.world(memory=8 * size)
            before = world.held()
            parent = world.program(0)
            va = huge_map(parent, size, size)
            world.cpus[0].store(va + size - 8, b"before")
            child = parent.fork()
            world.run(child, 1)
            require(
                world.cpus[1].load(va + size - 8, 6) == b"before", "the child lacks its parent's huge page"
            )
            world.cpus[0].store(va + size - 8, b"parent")
            require(world.cpus[1].load(va + size - 8, 6) == b"before", "the child sees its parent's store")
            world.cpus[1].store(va + size - 8, b"child!")
            require(world.cpus[0].load(va + size - 8, 6) == b"parent", "the parent sees its child's store")
            world.check_quiet("after huge copy-on-write")
            parent.exit()
            child.exit()
            require(world.held() == before, f"held before {before}, after {world.held()}")

    def test_mprotect_of_a_huge_page_is_obeyed(self, bench: Bench) -> None:
        for size in sizes_of(bench):
            world = bench.world(memory=8 * size)
            mm = world.program()
            va = huge_map(mm, size, size)
            for cpu in (0, 1):
                world.cpus[cpu].store(va + size // 2, b"x")
            mm.mprotect(va, size, "r")
            for cpu in (0, 1):
                require(
                    not world.allows(cpu, "store", va + size // 2), f"cpu {cpu} writes a read-only huge page"
                )
                require(world.cpus[cpu].load(va + size // 2, 1) == b"x", f"cpu {cpu} lost the huge page")
            mm.mprotect(va, size, "")
            for cpu in (0, 1):
                for access in ACCESSES:
                    require(
                        not world.allows(cpu, access, va + size // 2),
                        f"cpu {cpu} may {access} without rights",
                    )
            mm.mprotect(va, size, "r")
            require(world.cpus[1].load(va + size // 2, 1) == b"x", "a huge page without rights was lost")
            world.check_quiet("after mprotect of a huge page")

    def test_huge_tables_are_freed_by_their_own_path(self, bench: Bench) -> None:
        ops = bench.arch.ops
        called: list[tuple[int, int]] = []

        def hugetlb_free_pgd_range(tlb: Any, addr: int, end: int, floor: int, ceiling: int) -> None:
            called.append((addr, end))
            ops.hugetlb_free_pgd_range(tlb, addr, end, floor, ceiling)

        watched = bench.with_hook("hugetlb_free_pgd_range", hugetlb_free_pgd_range)
        for size in sizes_of(bench):
            world = watched.world(memory=8 * size)
            mm = world.program()
            empty = list(mm.struct.nr_tables)
            small = filled(world, mm, 3)
            mm.munmap(small, 3 * world.page)
            require(not called, "small pages are freed by hugetlb_free_pgd_range")
            va = huge_map(mm, 2 * size, size)
            world.cpus[0].store(va, b"x")
            world.cpus[0].store(va + size, b"x")
            mm.munmap(va, 2 * size)
            require(called == [(va, va + 2 * size)], f"hugetlb_free_pgd_range was called for {called}")
            called.clear()
            left = [max(n - e, 0) for n, e in zip(mm.struct.nr_tables, empty, strict=True)]
            require(not any(left), f"huge pages of {size:#x} left tables {left} by level")
            mm.exit()

    def test_no_small_page_is_put_among_huge_ones(self, bench: Bench) -> None:
        for size in sizes_of(bench):
            world = bench.world(memory=8 * size)
            mm = world.program()
            va = huge_map(mm, size, size)
            mm.munmap(va, size)
            only = bench.arch.ops.is_hugepage_only_range(mm.struct, va, world.page)
            try:
                mm.mmap(world.page, at=va, fixed=True)
            except SyscallError:
                require(only, f"a small page at {va:#x} is refused, though is_hugepage_only_range allows it")
            else:
                require(not only, f"a small page at {va:#x} is accepted, where only huge ones may be")
                world.cpus[0].store(va, b"x")
                require(world.cpus[1].load(va, 1) == b"x", f"a small page at {va:#x} is lost")

    def test_a_huge_mapping_outside_its_ranges_is_refused(self, bench: Bench) -> None:
        ranges = bench.shape.limits.huge_ranges
        if not ranges:
            raise NotApplicable("huge pages may be anywhere, or nowhere")
        for size in sizes_of(bench):
            mm = bench.world(memory=8 * size).program()
            for at in huge_places(bench, size):
                if any(low < at + size and at < high for low, high in ranges):
                    continue
                try:
                    bench.arch.ops.prepare_hugepage_range(mm.struct, at, size, size)
                except SyscallError:
                    continue
                raise AssertionError(f"prepare_hugepage_range accepts {at:#x}, outside huge_ranges")

    def test_a_misaligned_huge_mapping_is_refused(self, bench: Bench) -> None:
        for size in sizes_of(bench):
            world = bench.world(memory=8 * size)
            mm = world.program()
            va = huge_map(mm, size, size)
            mm.munmap(va, size)
            for at, length in ((va + world.page, size), (va, size + world.page)):
                try:
                    bench.arch.ops.prepare_hugepage_range(mm.struct, at, length, size)
                except SyscallError:
                    continue
                raise AssertionError(
                    f"a huge mapping of {length:#x} bytes at {at:#x} was accepted, size {size:#x}"
                )

    def test_a_munmap_over_small_and_huge_pages_leaves_no_table(self, bench: Bench) -> None:
        for size in sizes_of(bench):
            world = bench.world(memory=8 * size)
            mm = world.program()
            before = tables_in_memory(mm.struct)
            low = huge_map(mm, 2 * size, size)
            high = low + 2 * size
            world.cpus[0].store(low, b"h")
            world.cpus[0].store(high - 1, b"h")
            for at in (low - world.page, high):
                try:
                    mm.mmap(world.page, at=at, fixed=True)
                except SyscallError:
                    continue  # no place for a small page
                world.cpus[0].store(at, b"s")
                low, high = min(low, at), max(high, at + world.page)
            mm.munmap(low, high - low)
            left = tables_in_memory(mm.struct) - before
            require(not left, f"munmap of [{low:#x}, {high:#x}) left tables {sorted(left)}")
            require(
                sum(mm.struct.nr_tables[1:]) == len(tables_in_memory(mm.struct)),
                f"munmap of [{low:#x}, {high:#x}) left nr_tables at {mm.struct.nr_tables}",
            )
            mm.exit()


def sizes_of(bench: Bench) -> Iterator[int]:
    """The huge page sizes to check."""
    if not bench.shape.huge_page_sizes:
        raise NotApplicable("it has no huge pages")
    if not bench.huge_sizes:
        raise NotApplicable("its huge pages are too large to try")
    return iter(bench.huge_sizes)


def huge_places(bench: Bench, size: int) -> list[int]:
    """Where the core puts huge pages, far above that, and where small pages live: some may be refused."""
    mm = bench.world(memory=8 * size).program()
    here = huge_map(mm, 3 * size, size)
    places = {here} | {here + (offset & -size) for offset in (1 << 32, 1 << 36, 1 << 40, -1 << 32, -1 << 36)}
    places |= {(window.start + size - 1) & -size for window in bench.windows()}
    top = bench.shape.limits.task_size
    return sorted(place for place in places if place > 0 and place + 3 * size <= top)


def huge_map(mm: Mm, length: int, size: int) -> int:
    """Map ``length`` bytes of huge pages."""
    return mm.mmap(length, "rw", huge=size)
