"""strace logs: order of interleaved calls, arguments, processes and threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from polymmu.errors import UserMistake
from polymmu.workload.model import MmCall, Workload
from polymmu_strace.arguments import call_arguments
from tests.workload.samples import TRACES, read


def parse(tmp_path: Path, text: str) -> Workload:
    path = tmp_path / "log.txt"
    path.write_text(text)
    return read(path)


def test_a_call_is_told_in_numbers(tmp_path: Path) -> None:
    text = (
        "mmap(0x7f5004a62000, 1314816, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_FIXED|MAP_DENYWRITE, 3, 0x62000) "
        "= 0x7f5004a62000\n"
    )
    assert parse(tmp_path, text).calls == (
        MmCall(0, 1, 1, "mmap", (0x7F5004A62000, 1314816, 5, 0x812, 3, 0x62000), 0x7F5004A62000),
    )


@pytest.mark.parametrize(
    "prefix",
    ["", "812 ", "[pid   812] ", "812   1795224862.344019 ", "812 12:01:59 ", "812 12:01:59.000123 "],
)
def test_every_way_to_print_pid_and_time_is_understood(tmp_path: Path, prefix: str) -> None:
    (call,) = parse(tmp_path, f"{prefix}munmap(0x1000, 4096) = 0 <0.000012>\n").calls
    assert (call.name, call.args, call.ret, call.tid) == ("munmap", (0x1000, 4096), 0, 812 if prefix else 1)


@pytest.mark.parametrize(
    ("name", "text", "args", "path"),
    [
        ("openat", 'AT_FDCWD, "/a, \\"b\\") = 3", O_RDONLY|O_CLOEXEC', (-100, 0, 0), '/a, \\"b\\") = 3'),
        ("mmap", "NULL, 8192, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0", (0, 8192, 0, 0x22, -1, 0), ""),
        (
            "mmap",
            "NULL, 2097152, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|21<<MAP_HUGE_SHIFT, -1, 0",
            (0, 2097152, 0, 0x5404_0022, -1, 0),
            "",
        ),
        (
            "mremap",
            "0x1000, 4096, 8192, MREMAP_MAYMOVE|MREMAP_FIXED, 0x9000",
            (0x1000, 4096, 8192, 3, 0x9000),
            "",
        ),
        ("clone", "child_stack=NULL, flags=CLONE_VM|CLONE_VFORK|SIGCHLD", (0x4111,), ""),
        ("clone3", "{flags=CLONE_VM|CLONE_THREAD, exit_signal=0}, 88", (0x10100,), ""),
        ("fcntl", "3</dev/null>, F_DUPFD_CLOEXEC, 10", (3, 1030, 10), ""),
        ("fcntl", "3, F_GETFD", (3, -1), ""),
        ("madvise", "0x1000, 4096, MADV_DONTNEED", (0x1000, 4096, 4), ""),
        ("execve", '"/bin/ls", ["ls", "a,b"], 0x7ffc /* 4 vars */', (0, 0, 0x7FFC), "/bin/ls"),
    ],
)
def test_arguments(name: str, text: str, args: tuple[int, ...], path: str) -> None:
    assert call_arguments(name, text) == (args, path)


def test_a_child_exists_before_its_first_call(tmp_path: Path) -> None:
    text = (
        "10 clone(child_stack=NULL, flags=SIGCHLD <unfinished ...>\n"
        "11 munmap(0x1000, 4096) = 0\n"
        "10 <... clone resumed>, child_tidptr=0x7f) = 11\n"
    )
    assert [(c.name, c.process, c.ret) for c in parse(tmp_path, text).calls] == [
        ("clone", 10, 11),
        ("munmap", 11, 0),
    ]


def test_a_range_is_free_before_another_thread_gets_it(tmp_path: Path) -> None:
    text = (
        "10 clone3({flags=CLONE_VM|CLONE_THREAD}, 88) = 11\n"
        "10 munmap(0x1000, 4096 <unfinished ...>\n"
        "11 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0 <unfinished ...>\n"
        "11 <... mmap resumed>) = 0x1000\n"
        "10 <... munmap resumed>) = 0\n"
    )
    assert [(c.name, c.tid, c.process) for c in parse(tmp_path, text).calls] == [
        ("clone", 10, 10), ("munmap", 10, 10), ("mmap", 11, 10),
    ]  # fmt: skip


def test_calls_that_never_returned_are_dropped_but_exits_count(tmp_path: Path) -> None:
    text = (
        "10 brk(NULL) = 0x5000\n"
        "10 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3, 0 <unfinished ...>\n"
        "11 wait4(-1,  <unfinished ...>\n"
        "12 exit_group(0 <unfinished ...>\n"
        "10 +++ killed by SIGKILL +++\n"
        "12 +++ exited with 0 +++\n"
    )
    assert [(c.name, c.process) for c in parse(tmp_path, text).calls] == [
        ("brk", 10), ("exit_group", 12), ("exit_group", 10),
    ]  # fmt: skip


def test_failures_carry_their_errno(tmp_path: Path) -> None:
    text = 'openat(AT_FDCWD, "/no", O_RDONLY) = -1 ENOENT (No such file or directory)\n'
    (call,) = parse(tmp_path, text).calls
    assert (call.ret, call.failed) == (-2, True)


def test_every_process_of_make_is_found() -> None:
    """One execve per program, and each process ends: counted with grep in the log."""
    calls = read(TRACES / "strace" / "make.strace.txt.gz").calls
    names = [call.name for call in calls if not call.failed]
    ended = {call.process for call in calls if call.name == "exit_group"}
    begun = {call.ret for call in calls if call.name in ("clone", "vfork") and not call.failed}
    assert names.count("vfork") + names.count("clone") == 29
    assert begun <= ended


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("brk(NULL) = 0x5000\nhello\n", "line 2: 'hello' is not strace's"),
        ("brk(NULL) = 0x5000\nbrk(0x60", "line 2: breaks off in the middle"),
        (
            "brk(NULL) = 0x5000\nmunmap(0xffffffffffffffff, 4096) = 0\n",
            "line 2: munmap of a range beyond 2**64",
        ),
        ("brk(NULL) = 0x99999999999999999999\n", "line 1: an argument of brk is no 64-bit number"),
    ],
)
def test_a_broken_log_is_refused_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserMistake) as caught:
        parse(tmp_path, text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
