"""mprotect: after it returns, no access that needs the old rights succeeds, and no page is lost."""

from __future__ import annotations

import errno

import pytest

from polymmu.errors import InvalidArgument, SegmentationFault, SyscallError
from polymmu.hooks import ArchKernel
from polymmu.mm.fork import dup_mm
from polymmu.mm.mm import activate, mmput
from polymmu.mm.mprotect import do_mprotect
from polymmu.structs import VM_SHARED
from tests.mm.programs import PAGE, RIGHTS, check_links, draw, picture
from tests.mm.toy import ARCHES, boot, load, new_mm, running, state, store

BASE = 0x100000


@pytest.fixture(params=sorted(ARCHES))
def kernel(request: pytest.FixtureRequest) -> ArchKernel:
    return boot(ARCHES[request.param])


def test_a_store_that_was_allowed_and_cached_is_refused_afterwards(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    store(mm, BASE, b"once")
    do_mprotect(mm, BASE, PAGE, RIGHTS["r"])
    assert load(mm, BASE, 4) == b"once"
    with pytest.raises(SegmentationFault):
        store(mm, BASE, b"more")
    assert load(mm, BASE, 4) == b"once"


def test_a_page_without_rights_keeps_its_bytes(kernel: ArchKernel) -> None:
    before = state(kernel)
    mm = new_mm(kernel)
    draw(mm, "www", at=BASE)
    store(mm, BASE + PAGE, b"kept")
    do_mprotect(mm, BASE, 3 * PAGE, RIGHTS["-"])
    for access in (lambda: load(mm, BASE + PAGE), lambda: store(mm, BASE + PAGE)):
        with pytest.raises(SegmentationFault):
            access()
    assert mm.anon_rss == 1
    do_mprotect(mm, BASE + PAGE, PAGE, RIGHTS["w"])
    assert load(mm, BASE + PAGE, 4) == b"kept"
    store(mm, BASE + PAGE, b"more")
    assert picture(mm, at=BASE, pages=3) == "-|w|-"
    mmput(mm)
    assert state(kernel) == before


def test_code_is_fetched_only_from_where_it_may_be(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    store(mm, BASE, b"code")
    with pytest.raises(SegmentationFault):
        running(mm).fetch(BASE, 4)
    do_mprotect(mm, BASE, PAGE, RIGHTS["x"])
    assert running(mm).fetch(BASE, 4) == b"code"


def test_writable_again_does_not_mean_writable_for_both_after_a_fork(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    store(mm, BASE, b"both")
    child = dup_mm(mm)
    do_mprotect(mm, BASE, PAGE, RIGHTS["r"])
    do_mprotect(mm, BASE, PAGE, RIGHTS["w"])
    store(mm, BASE, b"mine")
    activate(kernel, kernel.cpus[0], child)
    assert load(child, BASE, 4) == b"both"


def test_shared_memory_is_written_at_once_when_it_may_be(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "r", at=BASE)
    do_mprotect(mm, BASE, PAGE, RIGHTS["w"])
    store(mm, BASE, b"x")
    assert load(mm, BASE) == b"x"
    assert not next(iter(mm.vmas.values())).vm_flags & VM_SHARED


def test_a_gap_ends_the_call_after_what_lies_before_it(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "ww.ww", at=BASE)
    with pytest.raises(SyscallError) as refused:
        do_mprotect(mm, BASE, 5 * PAGE, RIGHTS["r"])
    assert refused.value.errno == errno.ENOMEM
    assert picture(mm, at=BASE, pages=5) == "rr.ww"
    with pytest.raises(SyscallError):
        do_mprotect(mm, BASE + 2 * PAGE, PAGE, RIGHTS["r"])
    check_links(mm)


def test_nonsense_is_refused_and_nothing_is_nothing(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    for start, length, rights in ((BASE + 1, PAGE, 1), (BASE, -1, 1), (BASE, PAGE, VM_SHARED)):
        with pytest.raises(InvalidArgument):
            do_mprotect(mm, start, length, rights)
    do_mprotect(mm, BASE, 0, RIGHTS["r"])
    do_mprotect(mm, BASE, PAGE, RIGHTS["w"])
    assert picture(mm, at=BASE, pages=1) == "w"
