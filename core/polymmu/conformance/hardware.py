"""The MMU against the tables: walks, rights, faults.

``Walker``: the plain walk, the compiled one and a dictionary of what was mapped say the same. ``Faults``: each
mapping allows exactly its accesses, and a refusal is decoded as what it was.
"""

from __future__ import annotations

import random

from polymmu.conformance.bench import ACCESSES, Bench, NotApplicable, World, require
from polymmu.conformance.checks import Checks
from polymmu.events import Observer
from polymmu.hardware.cpu import Cpu, Upcoming
from polymmu.hardware.entry import Access, Privilege, WalkFault
from polymmu.hardware.walk import Translation
from polymmu.machine import Mm
from polymmu.structs import FaultInfo

__all__ = ["Faults", "Walker"]

PROTECTIONS = ("", "r", "w", "x", "rw", "rx", "wx", "rwx")
RIGHT = {"load": "r", "store": "w", "fetch": "x"}


class Refused(Exception):
    """Hardware refused an access; ``info`` is what the arch made of the code."""

    def __init__(self, info: FaultInfo) -> None:
        super().__init__(info)
        self.info = info


class NoSoftware:
    """Vectors that serve nothing: what comes back is hardware's own verdict."""

    def __init__(self, world: World) -> None:
        self.ops = world.kernel.ops

    def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
        raise Refused(self.ops.decode_fault(code))


def verdict(world: World, cpu: int, access: str, va: int) -> FaultInfo | None:
    """What hardware alone says to an access: None where it is allowed."""
    handle = world.cpus[cpu]
    handle.cpu.vectors = NoSoftware(world)
    try:
        if access == "store":
            handle.store(va, b"s")
        elif access == "load":
            handle.load(va, 1)
        else:
            handle.fetch(va, 1)
    except Refused as refused:
        return refused.info
    finally:
        handle.cpu.vectors = world.machine.vectors
    return None


def scattered(world: World, mm: Mm) -> dict[int, bytes]:
    """Pages mapped all over the address space, each with bytes of its own: address -> bytes."""
    rng = random.Random(7)
    pages: dict[int, bytes] = {}
    for window in world.bench.windows():
        span = (window.end - window.start) // world.page
        for page in sorted({0, 1, span // 2, span - 2, span - 1} | {rng.randrange(span) for _ in range(8)}):
            va = window.start + page * world.page
            if window.start <= va < window.end and va not in pages:
                mm.mmap(world.page, at=va, fixed=True)
                pages[va] = b"%016x" % va
    for va, data in pages.items():
        world.cpus[0].store(va, data)
    return pages


class Walker(Checks):
    """The walks against a dictionary of what was mapped."""

    def test_both_walks_find_what_was_mapped_and_nothing_else(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        pages = scattered(world, mm)
        translation = world.kernel.cpus[0].translation
        cpu = world.kernel.cpus[1]
        for va, data in pages.items():
            require(world.cpus[1].load(va, 16) == data, f"the compiled walk finds another page at {va:#x}")
            walk = translation.walk(world.kernel.ram, cpu.root, va, Access.LOAD, Privilege.USER, cpu.asid)
            require(walk.fault is WalkFault.NONE, f"the plain walk refuses {va:#x}: {walk.fault.name}")
            assert walk.pa is not None
            require(
                world.kernel.ram.read(walk.pa, 16) == data,
                f"the plain walk finds another page at {va:#x}: {walk.pa:#x}",
            )
            require(
                walk.page_size == world.page, f"the page at {va:#x} is said to have {walk.page_size:#x} bytes"
            )
            require(bool(walk.path), f"the plain walk of {va:#x} shows no step")
        for va in pages:
            for near in (va - world.page, va + world.page):
                if near in pages or mm.is_mapped(near) or not 0 <= near < 1 << 64:
                    continue
                walk = translation.walk(
                    world.kernel.ram, cpu.root, near, Access.LOAD, Privilege.USER, cpu.asid
                )
                require(
                    walk.pa is None and walk.fault is not WalkFault.NONE,
                    f"the plain walk finds {near:#x} mapped",
                )
                require(
                    verdict(world, 1, "load", near) is not None, f"the compiled walk finds {near:#x} mapped"
                )

    def test_both_walks_agree_on_every_right(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        base = mm.mmap(16 * world.page)
        translation = world.kernel.cpus[0].translation
        cpu = world.kernel.cpus[0]
        for n, prot in enumerate(PROTECTIONS):
            for shared in (False, True):
                va = base + (2 * n + shared) * world.page
                mm.mmap(world.page, "rw", at=va, fixed=True, shared=shared)
                world.cpus[0].store(va, b"x")
                mm.mprotect(va, world.page, prot)
                if prot:
                    first = next(access for access in ACCESSES if RIGHT[access] in prot)
                    world.allows(0, first, va)
                for access in ACCESSES:
                    walk = translation.walk(
                        world.kernel.ram, cpu.root, va, Access[access.upper()], Privilege.USER, cpu.asid
                    )
                    allowed = verdict(world, 0, access, va) is None
                    require(
                        allowed == (walk.fault is WalkFault.NONE),
                        f"a {access} of a {'shared' if shared else 'private'} {prot or '---'} page: plain walk "
                        f"{walk.fault.name}, compiled {'yes' if allowed else 'no'}",
                    )

    def test_a_walk_is_counted_with_its_references(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program(0)
        va = mm.mmap(world.page)
        world.cpus[0].store(va, b"x")
        cpu = world.kernel.cpus[0]
        cpu.invalidate(asid=None, include_global=True, walk_caches="all")
        cpu.reset_counters()
        world.cpus[0].load(va, 1)
        walk = cpu.counters()["walk"]
        require(walk["count"] >= 1, f"a miss counted {walk['count']} walks")
        require(walk["references"] >= 1, f"a miss counted {walk['references']} references to tables")


class Faults(Checks):
    """What is allowed, and what a refusal says."""

    def test_each_mapping_allows_exactly_its_accesses(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        pte = bench.shape.pte
        for prot in PROTECTIONS:
            for shared in (False, True):
                for access in ACCESSES:
                    va = mm.mmap(world.page, prot, shared=shared)
                    vma = world.vma(mm, va)
                    allowed = world.allows(0, access, va)
                    if RIGHT[access] in prot:
                        require(allowed, f"a {access} of a {prot} page is refused")
                    elif access == "store" or not prot:
                        require(not allowed, f"a {access} of a {prot or '---'} page is allowed")
                    else:
                        field = pte.read if access == "load" else pte.execute
                        brings = pte.present.test(vma.vm_page_prot) and field.test(vma.vm_page_prot)
                        require(
                            allowed == brings,
                            f"a {access} of a {prot} page is {'allowed' if allowed else 'refused'}, its bits say not",
                        )
                    mm.munmap(va, world.page)

    def test_mprotect_takes_rights_at_once_on_every_cpu(self, bench: Bench) -> None:
        for prot in ("", "r", "rx"):
            world = bench.world()
            mm = world.program()
            va = mm.mmap(3 * world.page, "rwx")
            for cpu in (0, 1):
                for n in range(3):
                    world.cpus[cpu].store(va + n * world.page, b"x")
            mm.mprotect(va + world.page, world.page, prot)
            for cpu in (0, 1):
                for access in ACCESSES:
                    allowed = world.allows(cpu, access, va + world.page)
                    if RIGHT[access] in prot or access == "store" or not prot:
                        require(
                            allowed == (RIGHT[access] in prot),
                            f"cpu {cpu}: {access} after mprotect({prot!r}): {allowed}",
                        )
                    require(
                        world.allows(cpu, access, va),
                        f"cpu {cpu}: mprotect of the next page refuses a {access}",
                    )
            mm.mprotect(va + world.page, world.page, "rw")
            require(world.allows(1, "store", va + world.page), "mprotect does not give the right back")
            require(world.cpus[0].load(va + 2 * world.page, 1) == b"x", "the page behind was changed")
            world.check_quiet("after mprotect")

    def test_a_page_without_rights_keeps_what_is_in_it(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        va = mm.mmap(world.page)
        world.cpus[0].store(va, b"kept")
        mm.mprotect(va, world.page, "")
        mm.mprotect(va, world.page, "r")
        require(world.cpus[1].load(va, 4) == b"kept", "PROT_NONE lost the page")
        mm.mprotect(va, world.page, "")
        mm.munmap(va, world.page)

    def test_a_refusal_is_decoded_as_what_it_was(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        va = mm.mmap(world.page, "r")
        for access in ACCESSES:
            info = verdict(world, 0, access, va)
            require(info is not None and info.kind == "not_present", f"a {access} of an absent page: {info}")
            assert info is not None
            require(access_fits(bench, access, info), f"a {access} of an absent page is decoded as {info}")
            require(info.user, f"a program's {access} is decoded as the kernel's: {info}")
        world.cpus[0].load(va, 1)
        info = verdict(world, 0, "store", va)
        kinds = {"protection", "dirty"}
        if not says_why(world.kernel.cpus[0].translation):
            kinds.add("not_present")
        require(
            info is not None and info.kind in kinds and info.access == "store",
            f"a store to a read-only page is decoded as {info}",
        )

    def test_an_address_that_does_not_exist_is_refused(self, bench: Bench) -> None:
        world = bench.world()
        world.program()
        limits = bench.shape.limits
        beyond = [va for hole in limits.holes for va in (hole[0], (hole[0] + hole[1]) // 2 & -world.page)]
        if limits.task_size < 1 << 62:
            beyond += [1 << 62, (1 << 63) + world.page]
        if not beyond:
            raise NotApplicable("every address is one")
        for va in beyond:
            for access in ACCESSES:
                info = verdict(world, 0, access, va)
                require(info is not None, f"hardware allows a {access} at {va:#x}, which is no address")
                require(
                    not world.allows(0, access, va), f"a {access} at {va:#x}, which is no address, is served"
                )

    def test_a_first_load_sees_zeroes_and_the_first_store_is_seen_by_all(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        va = mm.mmap(40 * world.page)
        for n in range(40):
            for cpu in (0, 1):
                require(
                    world.cpus[cpu].load(va + n * world.page, 8) == bytes(8), f"page {n} is not zero at first"
                )
        for n in range(40):
            world.cpus[n % 2].store(va + n * world.page, bytes([n + 1]))
            require(
                world.cpus[1 - n % 2].load(va + n * world.page, 1) == bytes([n + 1]),
                f"page {n}: the other cpu still reads the zero page",
            )
        world.check_quiet("after copying the zero page")

    def test_the_same_access_faults_once(self, bench: Bench) -> None:
        faults = Counted()
        world = bench.world(faults)
        mm = world.program()
        for shared in (False, True):
            va = mm.mmap(world.page, "rwx", shared=shared)
            for access in ("load", "store", "fetch"):
                world.allows(0, access, va)
                faults.n = 0
                world.allows(0, access, va)
                world.allows(1, access, va)
                require(not faults.n, f"a {access} that was served faults again ({faults.n} times)")


def says_why(translation: Translation) -> bool:
    """Whether hardware's code tells a refused access from an absent page; RISC-V's cause does not."""
    codes = getattr(translation, "fault_codes", {})
    why = {
        codes.get((fault, Access.STORE, Privilege.USER))
        for fault in (WalkFault.NOT_PRESENT, WalkFault.NO_PERMISSION)
    }
    return not codes or len(why) > 1


def access_fits(bench: Bench, access: str, info: FaultInfo) -> bool:
    """Whether the decoded access is the one made. Hardware that cannot tell a fetch reports a load."""
    if access != "fetch":
        return info.access == access
    return info.access in {"fetch", "load"}


class Counted(Observer):
    """How many faults were served."""

    def __init__(self) -> None:
        self.n = 0

    def fault(self, mm: object, addr: int, kind: str, n: int) -> None:
        self.n += n
