"""Which mappings a program starts with under valgrind: its own, the loader's, the heap's first page, the
stack.

A log of accesses does not say. Valgrind prints them when asked for debug output (``-d``), on the program's
own stderr; so a first run is stopped before the program's first instruction (as if for a debugger) and ended
there. Valgrind places everything itself, so that the second, recorded run has the same layout.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections.abc import Sequence

from polymmu.errors import UserMistake
from polymmu.workload.model import InitialMapping

__all__ = ["initial_mappings"]

_PLATFORM = re.compile(rb"launcher selected platform '([^']*)'")
_START = b"Memory layout at client startup"
_END = b"aspacem >>>"
# Lower-case kinds belong to the program, capitals to valgrind itself.
_SEGMENT = re.compile(rb"aspacem +\d+: (file|anon) ([0-9a-f]+)-([0-9a-f]+) +\S+ ([r-])([w-])([xT-])")
_PATIENCE_SECONDS = 60.0


def initial_mappings(valgrind: str, argv: Sequence[str]) -> tuple[InitialMapping, ...]:
    """The program's mappings before its first instruction, ascending; none if valgrind does not tell.

    Raises ``UserMistake`` for a program that is not x86-64: its system calls have other numbers.
    """
    mappings: list[InitialMapping] = []
    with tempfile.TemporaryDirectory(prefix="polymmu-") as pipes:
        command = [
            valgrind,
            "-d",
            "--tool=lackey",
            "--vgdb=yes",
            "--vgdb-error=0",
            f"--vgdb-prefix={pipes}/vgdb",
            "--log-file=/dev/null",
            *argv,
        ]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            watchdog = threading.Timer(_PATIENCE_SECONDS, process.kill)
            watchdog.start()
            try:
                assert process.stderr is not None
                started = False
                for line in process.stderr:
                    platform = _PLATFORM.search(line)
                    if platform is not None and platform[1] != b"amd64-linux":
                        raise UserMistake(
                            f"is a program for {platform[1].decode('ascii', 'replace')}; "
                            "only x86-64 programs can be recorded",
                            place=argv[0],
                        )
                    started = started or _START in line
                    segment = _SEGMENT.search(line) if started else None
                    if segment is not None:
                        kind, low, high, read, write, execute = segment.groups()
                        prot = "".join(
                            letter
                            for letter, flag in zip("rwx", (read, write, execute), strict=True)
                            if flag != b"-"
                        )
                        mappings.append(
                            InitialMapping(int(low, 16), int(high, 16) + 1, prot, kind == b"file")
                        )
                    if started and _END in line:
                        break
            finally:
                watchdog.cancel()
                process.kill()
    return tuple(mappings)
