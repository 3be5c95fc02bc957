"""What looks like a breach and is none."""

from __future__ import annotations

from polymmu.machine import Machine
from polymmu.mm.calls import mm_call
from tests.sanitize.random_work import finished, machine
from tests.sanitize.test_random_work import nothing_found


def test_walks_from_pages_say_nothing_of_the_call_that_had_to_make_room() -> None:
    made = Machine.from_file("x86", sanitize=True)
    mm = made.new_mm()
    with mm_call(mm.struct, "mmap") as kernel:
        kernel.events.entries_visited(mm.struct, "rmap", 1 << 20)
    mm.exit()
    nothing_found(finished(made))


def test_a_lazy_cpu_drops_an_old_store_to_a_frame_that_is_another_files_by_now() -> None:
    """Nobody interrupts CPU 1 while it idles: that the frame was stored to, as its TLB has it, was in a former life."""
    made = machine("x86_64", 2, 0, "timed")
    mm, page = made.new_mm(), made.page_size
    old, new = made.new_file(page), made.new_file(page)
    at, other = mm.mmap(page, file=old, shared=True), mm.mmap(page, file=new, shared=True)
    frames = []

    def stores_and_sleeps() -> None:
        made.sleep(50_000)
        made.cpus[1].store(at, b"x")
        frames.append(old.file.mapping.pages[0])
        made.sleep(400_000)
        made.cpus[1].load(other, 1)

    def cuts_off_and_reads_the_other() -> None:
        made.cpus[0].load(at, 1)
        made.sleep(150_000)
        old.truncate(0)
        made.cpus[0].load(other, 1)
        frames.append(new.file.mapping.pages[0])

    made.spawn("stores", 1, mm, stores_and_sleeps)
    made.spawn("cuts off", 0, mm, cuts_off_and_reads_the_other)
    made.run_tasks()
    assert frames[0] == frames[1], "else this test shows nothing"
    mm.exit()
    old.close()
    new.close()
    nothing_found(finished(made))
