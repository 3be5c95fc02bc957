"""What a person waits for: a whole run, ``--help``, and a machine with much memory.

Each is a process of its own, with compile caches warm, as it is from the second run on.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from numba.core.registry import cpu_target

from benchmarks.measure import MIB, Row, Target, resident_bytes
from benchmarks.workloads import TRACES, Lab, machine

__all__ = ["process", "start_of_machine"]

RUN = ("-m", "polymmu", "run", "x86_64", str(TRACES / "cc1_part2.npz"), "-q", "--format", "json")
HELP = ("-m", "polymmu", "--help")
HEAVY = """
import sys
from polymmu.cli.main import main
try:
    main(["--help"])
except SystemExit:
    pass
print(sum(name in sys.modules for name in ("numpy", "numba", "llvmlite")), file=sys.stderr)
"""
START = "import benchmarks.process as p; print(p.start_of_machine())"


def run_python(arguments: Sequence[str], rounds: int) -> tuple[float, float]:
    """Least (wall, CPU) seconds of a Python process, after one that warms up: other work can only add."""
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(rounds + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        wall.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(wall[1:]), min(cpu[1:])


def start_of_machine() -> str:
    """JSON of [seconds, bytes] that the first 64 GiB machine of this process takes, imports and caches warm.

    numba puts the last part of its own imports, the tables of its built-in functions, off until a first compiled
    function is loaded. They are imports all the same, so they are made to happen before the clock starts.
    """
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    bytes_before = resident_bytes()
    start = time.process_time()
    large = machine(memory="64GiB")
    seconds = time.process_time() - start
    assert large.kernel.ram.size == 64 << 30
    return json.dumps([seconds, resident_bytes() - bytes_before])


def process(lab: Lab) -> list[Row]:
    """Rows in seconds and bytes of whole processes."""
    group = "process"
    rounds = min(lab.rounds, 5)
    bare_wall, bare_cpu = run_python(["-c", "pass"], rounds)
    run_wall, run_cpu = run_python(RUN, rounds)
    imports_wall, _ = run_python(["-c", "import polymmu.api"], rounds)
    _, help_cpu = run_python(HELP, rounds)
    heavy = subprocess.run(
        [sys.executable, "-c", HEAVY], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    started = [
        json.loads(subprocess.run([sys.executable, "-c", START], check=True, stdout=subprocess.PIPE).stdout)
        for _ in range(rounds)
    ]
    start_seconds, start_bytes = (statistics.median(column) for column in zip(*started, strict=True))
    seconds, under = "s", Target
    return [
        Row(group=group, what="python -c pass", figure=bare_wall, unit=seconds),
        Row(
            group=group,
            what="import polymmu.api",
            figure=imports_wall,
            unit=seconds,
            ratio=imports_wall / bare_wall,
            reference="python -c pass",
        ),
        Row(
            group=group,
            what="polymmu run x86_64 cc1_part2.npz, wall",
            figure=run_wall,
            unit=seconds,
            ratio=run_wall / imports_wall,
            reference="import polymmu.api",
            target=under(1.5, at_most=True, of_figure=True),
            note=f"{run_cpu:.2f} s of CPU",
        ),
        Row(
            group=group,
            what="polymmu --help, CPU",
            figure=help_cpu,
            unit=seconds,
            ratio=help_cpu / bare_cpu,
            reference="python -c pass",
            target=under(0.2, at_most=True, of_figure=True),
        ),
        Row(
            group=group,
            what="numpy, numba or llvmlite imported by --help",
            figure=int(heavy.stderr),
            unit="of 3",
            target=under(0, at_most=True, of_figure=True),
        ),
        Row(
            group=group,
            what="start of a 64 GiB machine, beyond imports",
            figure=start_seconds * 1000,
            unit="ms",
            target=under(100, at_most=True, of_figure=True),
        ),
        Row(
            group=group,
            what="memory of a 64 GiB machine, beyond imports",
            figure=start_bytes / MIB,
            unit="MiB",
            target=under(100, at_most=True, of_figure=True),
        ),
    ]
