"""Programs as tasks of the timed driver: what they hold of the mm they run in, and when they give it back."""

from __future__ import annotations

from polymmu.machine import Machine


def test_a_cpu_that_another_program_took_while_an_mm_went_keeps_its_own() -> None:
    """The last user of a mapped file sleeps in exit; whoever runs there meanwhile must not lose the CPU's root."""
    made = Machine.from_file("x86_64", sets=["cpus=2", "memory=64 MiB"], driver="timed", sanitize=True)
    page = made.page_size
    file = made.new_file(page)
    leaving, staying = made.new_mm(), made.new_mm()
    va = staying.mmap(page)
    lock = file.file.mapping.i_mmap_lock
    seen = []

    def leaves() -> None:
        leaving.mmap(page, file=file, shared=True)
        made.sleep(10_000)  # the lock is taken meanwhile
        leaving.exit()

    def holds() -> None:
        made.sleep(5000)
        lock.lock()
        made.sleep(100_000)
        lock.unlock()

    def stays() -> None:
        made.sleep(20_000)
        for _ in range(300):
            made.cpus[0].store(va, b"x")
            seen.append(made.kernel.active_mm[0])
            made.sleep(1000)

    made.spawn("leaves", 0, leaving, leaves)
    made.spawn("holds", 1, None, holds)
    made.spawn("stays", 0, staying, stays)
    made.run_tasks()
    assert seen == [staying.struct] * 300
    staying.exit()
    file.close()
    assert made.sanitizer is not None
    made.sanitizer.finish()
    assert made.sanitizer.violations == []
    assert made.sanitizer.balance() == []
