"""Random programs against a model that knows no vma, no page table and no frame: pages with bytes and rights.

Hypothesis drives every memory system call on a family of address spaces, on two CPUs that may run the same one.
After each step the mappings are what the model says; bytes are compared where they are touched, and all of them
at the end. Then everything exits, and nothing may be left.
"""

from __future__ import annotations

import errno

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hardware.cpu import Cpu
from polymmu.mm.fork import dup_mm
from polymmu.mm.mm import activate, mm_alloc, mmput
from polymmu.mm.mmap import do_madvise_dontneed, do_mmap, do_munmap
from polymmu.mm.mprotect import do_mprotect
from polymmu.mm.mremap import do_mremap
from polymmu.mm.pagecache import new_file, put_file
from polymmu.mm.truncate import do_truncate
from polymmu.mm.vma import find_vma
from polymmu.structs import VM_ACCOUNT, VM_SHARED, VM_WRITE, File, mm_struct
from tests.mm.programs import PAGE, RIGHTS, check_links
from tests.mm.toy import ARCHES, boot, state

FIRST = 0x10A
"""First page of the window that fixed addresses fall into: small, so that calls meet; it crosses two tables."""
WINDOW = 24
ZERO = bytes(2)

pages_of_window = st.integers(FIRST, FIRST + WINDOW - 1)
picks = st.integers(0, 1 << 16)
"""Which of the mapped pages a call begins at, so that calls meet what is there."""
lengths = st.integers(1, 10)
letters = st.sampled_from("wwwrx-")
kinds = st.sampled_from(["private", "private", "shared", "file", "shared file"])


@attrs.define(eq=False)
class Content:
    """What a file holds: page index -> bytes; ``size`` in pages."""

    size: int
    pages: dict[int, bytes]

    def at(self, index: int) -> bytes:
        return self.pages.get(index, ZERO)


@attrs.frozen
class Page:
    """A mapped page: ``own`` once it has a private copy; before, what ``content`` has at ``index``."""

    rights: int
    content: Content | None
    index: int
    shared: bool
    own: bytes | None = None

    @property
    def beyond_the_end(self) -> bool:
        return self.content is not None and self.index >= self.content.size

    @property
    def bytes(self) -> bytes:
        if self.own is not None:
            return self.own
        return self.content.at(self.index) if self.content is not None else ZERO


class Programs(RuleBasedStateMachine):
    arch = "toy"

    @initialize()
    def start(self) -> None:
        self.kernel = boot(ARCHES[self.arch], cpus=2, memory=8 << 20)
        self.before = state(self.kernel)
        self.files: list[tuple[File, Content]] = []
        for n in range(2):
            content = {index: b"%d%c" % (n, 65 + index) for index in range(12)}
            file = new_file(self.kernel, f"f{n}", 12 * PAGE, read_page=content.copy().__getitem__)
            self.files.append((file, Content(12, content)))
        self.mms: list[mm_struct] = []
        self.models: list[dict[int, Page]] = []
        self._add(mm_alloc(self.kernel), {})
        self.current = 0
        self.cpu: Cpu = self.kernel.cpus[0]
        self._run()
        for kind, page in (("private", FIRST), ("file", FIRST + 8), ("shared file", FIRST + 16)):
            self.mmap(kind, "w", 8, page, 0, False, 0)

    def _add(self, mm: mm_struct, model: dict[int, Page]) -> None:
        self.mms.append(mm)
        self.models.append(model)

    def _run(self) -> None:
        self.kernel.sched.cpu = self.cpu
        activate(self.kernel, self.cpu, self.mm)

    @property
    def mm(self) -> mm_struct:
        return self.mms[self.current]

    @property
    def model(self) -> dict[int, Page]:
        return self.models[self.current]

    def _pick(self, pick: int) -> int:
        """A page to begin at: a mapped one, every eighth time any of the window."""
        mapped = sorted(self.model)
        if not mapped or pick % 8 == 0:
            return FIRST + pick // 8 % WINDOW
        return mapped[pick // 8 % len(mapped)]

    # ------------------------------------------------------------- scheduling
    @rule(which=st.integers(0, 2), cpu=st.integers(0, 1))
    def switch(self, which: int, cpu: int) -> None:
        self.current = which % len(self.mms)
        self.cpu = self.kernel.cpus[cpu]
        self._run()

    @precondition(lambda self: len(self.mms) < 3)
    @rule()
    def fork(self) -> None:
        self._add(dup_mm(self.mm), dict(self.model))

    @precondition(lambda self: len(self.mms) > 1)
    @rule()
    def exit(self) -> None:
        mmput(self.mm)
        del self.mms[self.current], self.models[self.current]
        self.current = 0
        self._run()

    # ------------------------------------------------------------------ calls
    @rule(
        kind=kinds,
        letter=letters,
        length=lengths,
        page=st.none() | pages_of_window,
        index=st.integers(0, 8),
        populate=st.booleans(),
        which=st.integers(0, 1),
    )
    def mmap(
        self, kind: str, letter: str, length: int, page: int | None, index: int, populate: bool, which: int
    ) -> None:
        rights, shared = RIGHTS[letter], kind.startswith("shared")
        file: File | None = None
        content: Content | None = None
        if kind.endswith("file"):
            file, content = self.files[which]
        elif shared:
            content, index = Content(length, {}), 0
        addr = do_mmap(
            self.mm,
            page * PAGE if page is not None else None,
            length * PAGE,
            rights | (VM_SHARED if shared else 0),
            fixed=page is not None,
            file=file,
            pgoff=index,
            populate=populate,
        )
        first = addr // PAGE
        assert page is None or first == page
        for n in range(length):
            assert page is not None or first + n not in self.model
            new = Page(rights, content, index + n, shared)
            if populate and not shared and rights & VM_WRITE and not new.beyond_the_end:
                new = attrs.evolve(new, own=new.bytes)
            self.model[first + n] = new

    @rule(pick=picks, length=lengths)
    def munmap(self, pick: int, length: int) -> None:
        page = self._pick(pick)
        do_munmap(self.mm, page * PAGE, length * PAGE)
        for n in range(page, page + length):
            self.model.pop(n, None)

    @rule(pick=picks, length=lengths, letter=letters)
    def mprotect(self, pick: int, length: int, letter: str) -> None:
        page = self._pick(pick)
        mapped = [n in self.model for n in range(page, page + length)]
        self._store(page, b"in")  # into the TLB, so that a flush that is missing shows below
        try:
            do_mprotect(self.mm, page * PAGE, length * PAGE, RIGHTS[letter])
        except SyscallError as error:
            assert error.errno == errno.ENOMEM
            assert not all(mapped)
        else:
            assert all(mapped)
        for n in range(page, page + length):
            if n not in self.model:
                break
            self.model[n] = attrs.evolve(self.model[n], rights=RIGHTS[letter])
        self._store(page, b"by")

    @rule(pick=picks, length=lengths)
    def dontneed(self, pick: int, length: int) -> None:
        page = self._pick(pick)
        inside = range(page, page + length)
        try:
            do_madvise_dontneed(self.mm, page * PAGE, length * PAGE)
        except SyscallError as error:
            assert error.errno == errno.ENOMEM
            assert any(n not in self.model for n in inside)
        for n in inside:
            if n in self.model:
                self.model[n] = attrs.evolve(self.model[n], own=None)

    @rule(pick=picks, length=lengths, new_length=lengths, to=st.none() | pages_of_window)
    def mremap(self, pick: int, length: int, new_length: int, to: int | None) -> None:
        page = self._pick(pick)
        vma = find_vma(self.mm, page * PAGE)
        if vma is None or vma.vm_start > page * PAGE:
            return
        length = min(length, vma.vm_end // PAGE - page)
        if to is not None and to < page + length and page < to + new_length:
            return
        at = do_mremap(
            self.mm,
            page * PAGE,
            length * PAGE,
            new_length * PAGE,
            new_addr=to * PAGE if to is not None else None,
        )
        first = at // PAGE
        if to is not None:
            assert first == to
        moved = [self.model.pop(page + n) for n in range(length)][:new_length]
        for n in range(new_length):
            if to is not None:
                self.model.pop(to + n, None)
            assert first + n not in self.model
            old = moved[n] if n < len(moved) else attrs.evolve(moved[0], own=None, index=moved[0].index + n)
            self.model[first + n] = old

    @rule(which=st.integers(0, 1), size=st.integers(0, 12))
    def truncate(self, which: int, size: int) -> None:
        file, content = self.files[which]
        do_truncate(self.kernel, file, size * PAGE)
        content.size = size
        for index in range(size, 12 + 20):
            content.pages.pop(index, None)
        for model in self.models:
            for n, page in model.items():
                if page.content is content and page.index >= size:
                    model[n] = attrs.evolve(page, own=None)

    # --------------------------------------------------------------- accesses
    @rule(pick=picks, length=lengths, byte=st.integers(1, 255))
    def store(self, pick: int, length: int, byte: int) -> None:
        page = self._pick(pick)
        for n in range(page, page + length):
            self._store(n, bytes((byte, 255 - byte)))

    def _store(self, page: int, data: bytes) -> None:
        known = self.model.get(page)
        if known is None or not known.rights & VM_WRITE or known.beyond_the_end:
            self._refused(page, "store")
            return
        self.cpu.store(page * PAGE, data)
        if known.shared:
            assert known.content is not None
            known.content.pages[known.index] = data
        else:
            self.model[page] = attrs.evolve(known, own=data)

    @rule(pick=picks, length=lengths)
    def load(self, pick: int, length: int) -> None:
        page = self._pick(pick)
        for n in range(page, page + length):
            self._check_page(n)

    def _check_page(self, page: int) -> None:
        known = self.model.get(page)
        if known is None or not known.rights or (known.own is None and known.beyond_the_end):
            self._refused(page, "load")
        else:
            assert self.cpu.load(page * PAGE, 2) == known.bytes, hex(page * PAGE)

    def _refused(self, page: int, access: str) -> None:
        try:
            if access == "store":
                self.cpu.store(page * PAGE, b"no")
            else:
                self.cpu.load(page * PAGE, 2)
        except SegmentationFault as fault:
            assert fault.va // PAGE == page
            assert fault.access == access
        else:
            raise AssertionError(f"{access} of page {page:#x} succeeded")

    # ----------------------------------------------------------------- always
    @invariant()
    def mappings_are_what_was_asked_for(self) -> None:
        for mm, model in zip(self.mms, self.models, strict=True):
            check_links(mm)
            mapped = {
                page: vma.vm_flags & 7
                for vma in mm.vmas.values()
                for page in range(vma.vm_start // PAGE, vma.vm_end // PAGE)
            }
            assert mapped == {page: known.rights for page, known in model.items()}
            assert mm.anon_rss == sum(known.own is not None for known in model.values())

    @invariant()
    def what_is_committed_is_what_could_be_asked_for(self) -> None:
        """Each private page that may be written, or that is the program's own and could become so, is charged once."""
        if not hasattr(self, "mms"):
            return
        vmas = [vma for mm in self.mms for vma in mm.vmas.values()]
        for vma in vmas:
            if vma.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
                assert vma.vm_flags & VM_ACCOUNT
            if vma.vm_flags & VM_SHARED:
                assert not vma.vm_flags & VM_ACCOUNT
        shared = {
            vma.vm_file.mapping.slot: vma.vm_file for vma in vmas if vma.vm_file and vma.vm_file.anonymous
        }
        pages = sum(vma.vm_end - vma.vm_start for vma in vmas if vma.vm_flags & VM_ACCOUNT) // PAGE
        assert self.kernel.vm_committed == pages + sum(file.committed for file in shared.values())

    def teardown(self) -> None:
        if not hasattr(self, "mms"):
            return
        for current in range(len(self.mms)):
            self.current = current
            self._run()
            for page in sorted(self.model):
                self._check_page(page)
                self._store(page, b"%c!" % current)
        for mm in self.mms:
            mmput(mm)
        for file, _ in self.files:
            put_file(self.kernel, file)
        assert state(self.kernel) == self.before


def run(arch: str, examples: int) -> None:
    machine = type(f"Programs_{arch}", (Programs,), {"arch": arch})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_programs_see_what_the_model_says() -> None:
    run("toy", 100)


def test_random_programs_on_an_architecture_whose_bits_mean_no() -> None:
    run("odd", 40)
