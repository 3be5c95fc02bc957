"""Shape and arithmetic: what an architecture says of itself, before anything runs.

``Layout``: its address space can be used up to every edge and not beyond. ``Entries``: what is put into an entry
comes out again. ``RangeWalks``: a step of a walk ends at the next boundary, at every boundary, hole and the top.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

from polymmu.conformance.bench import ACCESSES, Bench, NotApplicable, require
from polymmu.conformance.checks import Checks
from polymmu.errors import SyscallError, UserMistake
from polymmu.hardware.entry import Access, EntryFormat, Field, Privilege
from polymmu.mm.tables import format_of
from polymmu.structs import VM_EXEC, VM_READ, VM_SHARED, VM_WRITE

__all__ = ["Entries", "Layout", "RangeWalks"]

WORD = (1 << 64) - 1


class AnyRegister(dict[str, int]):
    """Registers as after boot; whatever else is asked for holds the root."""

    def __init__(self, registers: dict[str, int], root: int) -> None:
        super().__init__(registers)
        self.root = root

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return self.root

    def get(self, name: str, default: object = None) -> int:
        return self[name]


def may_name(root: int, page_shift: int) -> Iterator[int]:
    """What a register may hold to name a root: its address or its frame's number, and a mode in the top bits."""
    for mode in range(16):
        for place in (root, root >> page_shift):
            yield place | mode << 60


class Layout(Checks):
    """The address space, its edges and holes."""

    def test_the_section_is_an_instance_of_the_config_class(self, bench: Bench) -> None:
        kind = bench.arch.ops.config_class()
        require(isinstance(bench.section, kind), f"the machine file's section is no {kind.__name__}")

    def test_the_shape_fits_together(self, bench: Bench) -> None:
        shape, ops, section = bench.shape, bench.arch.ops, bench.section
        translation = ops.translation(section, shape.registers)
        page_shift = shape.layout.page_shift
        require(
            translation.page_shift == page_shift,
            f"the MMU's page shift is {translation.page_shift}, the tables' {page_shift}",
        )
        limits = shape.limits
        for name, place in (("mmap_base", limits.mmap_base), ("stack_top", limits.stack_top)):
            require(
                limits.first_user_address < place <= limits.task_size,
                f"{name} {place:#x} is outside [{limits.first_user_address:#x}, {limits.task_size:#x})",
            )
        require(
            limits.mm_vm_size >= limits.task_size,
            f"teardown stops at mm_vm_size {limits.mm_vm_size:#x}, below task_size {limits.task_size:#x}",
        )
        sizes = shape.huge_page_sizes
        require(list(sizes) == sorted(set(sizes)), f"huge page sizes {sizes} are not ascending")
        for size in sizes:
            require(
                1 << size.bit_length() - 1 in {1 << shift for shift in translation.page_shifts},
                f"the MMU has no page of huge size {size:#x}",
            )
        if not sizes and len(translation.page_shifts) > 1:
            raise AssertionError(
                f"the MMU has pages of 1 << {translation.page_shifts}, but no huge size is offered"
            )

    def test_every_edge_of_the_address_space_can_be_used(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        pages = {}
        for window in bench.windows():
            for va in (window.start, window.end - world.page):
                if va not in pages:
                    mm.mmap(world.page, at=va, fixed=True)
                    pages[va] = b"%16x" % va
        for va, data in pages.items():
            world.cpus[0].store(va, data)
        for va, data in pages.items():
            got = world.cpus[1].load(va, 16)
            require(got == data, f"what was stored at {va:#x} reads as {got!r}: two edges share a page")

    def test_every_address_that_can_be_mapped_can_be_used(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        top = bench.shape.limits.task_size
        places = {
            (1 << high) + sign * (1 << low)
            for high in range(65)
            for low in range(12, 63)
            for sign in (-1, 0, 1)
        }
        pages = {}
        for place in sorted(places):
            va = place & -world.page
            if (
                not 0 <= va < top
                or va in pages
                or bench.arch.ops.is_hugepage_only_range(mm.struct, va, world.page)
            ):
                continue
            if random.Random(va).random() < 0.7 and va & va - 1:
                continue
            try:
                mm.mmap(world.page, at=va, fixed=True)
            except SyscallError:
                continue
            pages[va] = b"%016x" % va
            world.cpus[0].store(va, pages[va])
        for va, data in pages.items():
            got = world.cpus[1].load(va, 16)
            require(got == data, f"what was stored at {va:#x} reads as {got!r}: two addresses share a page")

    def test_nothing_can_be_mapped_or_reached_in_a_hole_or_beyond_the_top(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        limits = bench.shape.limits
        outside = [(start, end) for start, end in limits.holes]
        outside.append((limits.task_size, 0))
        for start, end in outside:
            for va in (start, (end or 1 << 64) - world.page):
                try:
                    mm.mmap(world.page, at=va, fixed=True)
                except SyscallError:
                    pass
                else:
                    raise AssertionError(f"a mapping at {va:#x} was accepted")
                for access in ACCESSES:
                    require(not world.allows(0, access, va), f"a {access} at {va:#x} is allowed")

    def test_a_mapping_without_a_wish_lies_below_mmap_base(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        limits = bench.shape.limits
        va = mm.mmap(4 * world.page)
        require(
            max(limits.first_user_address, world.page) <= va <= limits.mmap_base - 4 * world.page,
            f"it was put at {va:#x}; mmap_base is {limits.mmap_base:#x}",
        )
        world.cpus[0].store(va, b"x")

    def test_a_stack_grows_down_from_its_top(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        top = bench.shape.limits.stack_top
        mm.mmap(world.page, at=top - world.page, fixed=True, grows_down=True)
        for n in range(1, 6):
            world.cpus[n % 2].store(top - n * world.page, bytes([n]))
        for n in range(1, 6):
            require(
                world.cpus[0].load(top - n * world.page, 1) == bytes([n]), f"page {n} of the stack is wrong"
            )

    def test_the_registers_that_name_a_root_lead_to_it(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        va = mm.mmap(world.page)
        world.cpus[0].store(va, b"root")
        cpu, ops = world.kernel.cpus[0], bench.arch.ops
        translation = ops.translation(bench.section, bench.shape.registers)
        wanted = world.frame(mm, va) * world.page
        refusal, found = "", []
        for value in may_name(cpu.root, bench.shape.layout.page_shift):
            try:
                root = ops.root_of(bench.section, AnyRegister(bench.shape.registers, value), None)
            except UserMistake as mistake:
                refusal = str(mistake)
                continue
            walk = translation.walk(world.kernel.ram, root, va, Access.LOAD, Privilege.USER, cpu.asid)
            if walk.pa == wanted:
                return
            found.append(root)
        if not found:
            raise NotApplicable(f"its root registers hold more than the root: {refusal}")
        raise AssertionError(f"root_of gives {found[0]:#x}; the program's root is {cpu.root:#x}")

    def test_an_address_space_that_does_not_exist_is_refused(self, bench: Bench) -> None:
        try:
            bench.arch.ops.root_of(bench.section, AnyRegister(bench.shape.registers, 0), "no such space")
        except UserMistake:
            return
        raise AssertionError("root_of took 'no such space' for an address space")


def fields_of(format: EntryFormat, value: int) -> Iterator[tuple[str, Field]]:
    """The properties the core may change in ``value``, those that the format has; rights only where it has some."""
    for name in ("write", "accessed", "dirty") if format.present.test(value) else ("accessed", "dirty"):
        field: Field | None = getattr(format, name)
        if field is not None and field.mask:
            yield name, field


class Entries(Checks):
    """What is put into an entry comes out again."""

    def test_every_frame_comes_out_of_a_pte_as_it_went_in(self, bench: Bench) -> None:
        shape = bench.shape
        pte, size = shape.pte, shape.layout.page_size
        last = bench.description.memory // size - 1
        for prot in shape.protections:
            for pfn in sorted({1 << bit for bit in range(last.bit_length())} | {0, last}):
                value = prot | pfn << shape.pfn_shift
                require(
                    pte.frame_of(value) == pfn * size, f"frame {pfn:#x} comes out of {value:#x} as another"
                )
                require(
                    pte.of_frame(pfn * size) | prot == value,
                    f"of_frame({pfn * size:#x}) and pfn_shift differ",
                )
                require(pte.is_mapped(value), f"the pte {value:#x} of a page does not look mapped")
                require(not pte.is_none(value), f"the pte {value:#x} of a page looks empty")

    def test_every_table_comes_out_of_an_entry_as_it_went_in(self, bench: Bench) -> None:
        mm = bench.world().program().struct
        layout, ops = mm.layout, bench.arch.ops
        for level in range(layout.pte_level):
            format = format_of(mm, level)
            step = max(layout.table_bytes_of(level + 1), layout.page_size)
            top = bench.description.memory // step
            tables = {step << bit for bit in range((top - 1).bit_length())} | {(top - 1) * step}
            tables |= {ops.table_alloc(mm, level + 1, 0) for _ in range(5)}
            for table in sorted(tables):
                value = format.of_table(table)
                require(
                    format.table_of(value) == table, f"level {level}: table {table:#x} is lost in {value:#x}"
                )
                require(
                    format.present.test(value),
                    f"level {level}: the entry {value:#x} of a table is not present",
                )
                require(
                    not format.is_none(value), f"level {level}: the entry {value:#x} of a table looks empty"
                )

    def test_an_empty_entry_maps_nothing(self, bench: Bench) -> None:
        pte = bench.shape.pte
        require(not pte.is_mapped(pte.empty), f"the empty pte {pte.empty:#x} looks mapped")
        for size, format in bench.shape.huge_formats.items():
            require(not format.is_mapped(format.empty), f"the empty entry of {size:#x} pages looks mapped")

    def test_setting_a_property_changes_that_property_alone(self, bench: Bench) -> None:
        shape = bench.shape
        pte = shape.pte
        frame = 3 << shape.pfn_shift
        for prot in shape.protections:
            value = prot | frame
            for name, field in fields_of(pte, value):
                for other in (field.set(value), field.clear(value)):
                    require(
                        pte.frame_of(other) == pte.frame_of(value), f"{name} changes the frame of {value:#x}"
                    )
                    require(pte.is_mapped(other), f"{name} unmaps {value:#x}")
                    for unlike, kept in fields_of(pte, value):
                        if unlike != name and not field.mask & kept.mask:
                            require(
                                kept.test(other) == kept.test(value), f"{name} changes {unlike} of {value:#x}"
                            )
                require(field.test(field.set(value)), f"{name} set in {value:#x} does not hold")
                require(not field.test(field.clear(value)), f"{name} cleared in {value:#x} still holds")

    def test_protections_grant_no_more_than_the_mapping(self, bench: Bench) -> None:
        shape = bench.shape
        pte = shape.pte
        for flags, prot in enumerate(shape.protections):
            shared_store = flags & (VM_WRITE | VM_SHARED) == VM_WRITE | VM_SHARED
            names = (
                "".join(c for c, bit in (("r", VM_READ), ("w", VM_WRITE), ("x", VM_EXEC)) if flags & bit)
                or "-"
            )
            if not flags & (VM_READ | VM_WRITE | VM_EXEC):
                continue
            require(pte.present.test(prot), f"the protection of {names} is not present to hardware")
            require(
                not pte.write.test(prot) or shared_store,
                f"the protection of a private {names} page can be written: copy-on-write is lost",
            )
            require(pte.write.test(prot) or not shared_store, f"a shared {names} page cannot be written")
            if pte.dirty is not None:
                require(not pte.dirty.test(prot), f"the protection of {names} is dirty before any store")

    def test_huge_entries_round_trip(self, bench: Bench) -> None:
        shape = bench.shape
        if not shape.huge_page_sizes:
            raise NotApplicable("it has no huge pages")
        for size in shape.huge_page_sizes:
            format = shape.huge_formats[size]
            for flags in (VM_READ, VM_READ | VM_WRITE | VM_SHARED):
                prot = shape.huge_protections[size][flags]
                for frame in (size, 5 * size):
                    value = prot | format.of_frame(frame)
                    require(format.frame_of(value) == frame, f"huge frame {frame:#x} is lost in {value:#x}")
                    require(format.is_mapped(value), f"the huge entry {value:#x} does not look mapped")
                require(
                    format.write.test(prot) == bool(flags & VM_SHARED),
                    f"huge protection {prot:#x}: wrong write right",
                )


class RangeWalks(Checks):
    """Where a step of a range walk ends."""

    def test_a_step_ends_at_the_next_boundary_or_the_end(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program().struct
        layout, ops = mm.layout, bench.arch.ops
        rng = random.Random(1)
        for level in range(layout.pte_level):
            span = layout.span_of(level)
            for window in bench.windows():
                middle = window.start & -span
                places = {window.start, window.end - world.page, middle + span - world.page, middle + span}
                places |= {rng.randrange(window.start, window.end) & -world.page for _ in range(8)}
                usable = sorted(va for va in places if window.start <= va < window.end)
                for addr in usable:
                    for end in [*(va for va in usable if va > addr), window.end]:
                        ends = (
                            ops.pgd_addr_end(mm, addr, end)
                            if not level
                            else ops.addr_end(mm, level, addr, end)
                        )
                        wanted = min((addr + span) & -span, end)
                        require(
                            ends == wanted,
                            f"level {level}: a step from {addr:#x} to {end:#x} stops at {ends:#x}, not {wanted:#x}",
                        )

    def test_a_step_that_ends_at_the_top_of_all_addresses_ends(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program().struct
        layout, ops = mm.layout, bench.arch.ops
        for level in range(layout.pte_level):
            span = layout.span_of(level)
            for addr in (-span & WORD, -world.page & WORD):
                ends = ops.pgd_addr_end(mm, addr, 0) if not level else ops.addr_end(mm, level, addr, 0)
                require(ends == 0, f"level {level}: a step from {addr:#x} to the top stops at {ends:#x}")

    def test_a_walk_steps_over_holes(self, bench: Bench) -> None:
        mm = bench.world().program().struct
        holes = bench.shape.limits.holes
        if not holes:
            raise NotApplicable("its address space has no holes")
        layout, ops = mm.layout, bench.arch.ops
        span = layout.span_of(0)
        for low, high in holes:
            addr, end = (low - 1) & -span, high + layout.page_size
            steps = [addr]
            while addr != end and len(steps) < 9:
                addr = ops.pgd_addr_end(mm, addr, end)
                steps.append(addr)
            require(
                addr == end,
                f"a walk over the hole {low:#x}-{high:#x} is at {addr:#x} after 8 steps: it crawls",
            )
            for here, stop in pairwise(steps):
                if (
                    stop - here > span
                ):  # the step over the hole; below the top, too, it ends on the other side
                    for level in range(1, layout.pte_level):
                        last = here + span - layout.span_of(level)
                        ends = ops.addr_end(mm, level, last, end)
                        require(
                            ends == stop,
                            f"level {level}: a step from {last:#x} stops at {ends:#x}, in a hole",
                        )
