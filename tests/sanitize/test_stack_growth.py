"""Threads whose stack accesses make the same mapping grow, while somebody walks from one of its pages."""

from __future__ import annotations

from functools import partial

import pytest

from tests.sanitize.random_work import finished, machine
from tests.sanitize.test_random_work import nothing_found

TOP = 1 << 30


@pytest.mark.parametrize("deeper_first", [True, False])
def test_the_stack_reaches_as_far_as_the_deepest_access_and_is_charged_once(deeper_first: bool) -> None:
    made = machine("x86_64", 3, 1, "timed")
    mm, page = made.new_mm(), made.page_size
    mm.mmap(page, at=TOP, fixed=True, grows_down=True)

    def walks() -> None:
        made.cpus[2].store(TOP, b"s")
        anon = mm.struct.vmas[TOP].anon_vma
        assert anon is not None
        anon.root.lock.lock()
        made.sleep(100_000)
        anon.root.lock.unlock()

    def pushes(cpu: int, depth: int) -> None:
        made.sleep(50_000 + cpu * 5000)
        made.cpus[cpu].store(TOP - depth * page, b"s")

    made.spawn("walks", 2, mm, walks)
    for cpu, depth in enumerate((30, 10) if deeper_first else (10, 30)):
        made.spawn(f"pushes {depth}", cpu, mm, partial(pushes, cpu, depth))
    made.run_tasks()
    assert list(mm.struct.vmas) == [TOP - 30 * page]
    assert mm.struct.total_vm == made.kernel.vm_committed == 31
    mm.exit()
    nothing_found(finished(made))
