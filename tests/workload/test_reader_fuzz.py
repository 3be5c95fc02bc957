"""Whatever the bytes are: a workload or one line for the user, never another exception."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polymmu.errors import PluginMistake, UserMistake
from polymmu.workload.model import Workload
from tests.workload.samples import TRACES, read, save, small_columns, small_runs

bounded = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def either_workload_or_one_line(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        workload = read(path)
    except UserMistake as mistake:
        assert not isinstance(mistake, PluginMistake), mistake
        assert str(mistake).startswith(str(path))
        assert "\n" not in str(mistake)
    else:
        assert isinstance(workload, Workload)


def _lackey() -> bytes:
    """The run's banner, its first calls of each kind, and a few accesses between them."""
    lines = gzip.decompress((TRACES / "raw" / "true.lackey.full.txt.gz").read_bytes()).splitlines(
        keepends=True
    )
    others = [at for at, line in enumerate(lines) if line.startswith((b"==", b"--", b"SYSCALL"))][:40]
    return b"".join(b"".join(lines[at : at + 2]) for at in others)


def _strace() -> bytes:
    lines = gzip.decompress((TRACES / "strace" / "pyfork.strace.txt.gz").read_bytes()).splitlines(
        keepends=True
    )
    return b"".join(lines[0:3] + lines[305:330] + lines[-3:])


def _npz(tmp: Path) -> bytes:
    return save(tmp / "good", small_columns()).read_bytes()


def _runs(tmp: Path) -> bytes:
    return save(tmp / "good", small_runs()).read_bytes()


SEEDS: dict[str, Callable[[Path], bytes]] = {
    "lackey": lambda _: _lackey(),
    "lackey.gz": lambda _: gzip.compress(_lackey(), mtime=0),
    "strace": lambda _: _strace(),
    "npz": _npz,
    "npz-runs": _runs,
}


@pytest.mark.parametrize("kind", SEEDS)
def test_seeds_themselves_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(SEEDS[kind](tmp_path))
    assert isinstance(read(path), Workload)


@pytest.mark.parametrize("kind", SEEDS)
def test_truncated_files(tmp_path: Path, kind: str) -> None:
    good = SEEDS[kind](tmp_path)
    for length in [*range(min(len(good), 64)), *range(64, len(good), max(len(good) // 150, 1))]:
        either_workload_or_one_line(tmp_path / "f", good[:length])


@pytest.mark.parametrize("kind", SEEDS)
@bounded
@given(data=st.data())
def test_files_with_changed_bytes(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(SEEDS[kind](tmp_path))
    places = st.integers(0, len(content) - 1)
    for at, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        content[at] = value
    either_workload_or_one_line(tmp_path / "f", bytes(content))


@pytest.mark.parametrize("kind", SEEDS)
@bounded
@given(data=st.data())
def test_files_with_a_piece_missing_doubled_or_foreign(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    content = SEEDS[kind](tmp_path)
    low = data.draw(st.integers(0, len(content)))
    high = data.draw(st.integers(low, len(content)))
    middle = data.draw(st.sampled_from((b"", content[low:high] * 2)) | st.binary(max_size=200))
    either_workload_or_one_line(tmp_path / "f", content[:low] + middle + content[high:])


@pytest.mark.parametrize(
    "magic", [b"", b"PK\x03\x04", b"PAR1", b"\x1f\x8b\x08\x00", b"==1== Lackey, x\n", b"1 brk("]
)
@bounded
@given(tail=st.binary(max_size=300))
def test_random_bytes_behind_every_formats_beginning(tmp_path: Path, magic: bytes, tail: bytes) -> None:
    either_workload_or_one_line(tmp_path / "f", magic + tail)


_ATOMS = st.sampled_from(
    ["SYSCALL[1,1](9) ", "sys_mmap ( 0x0, 1 )", " --> ", "[async] ", "... ", "Success(0x1)", "Failure(0x2)", "\n",
     "I  00001000,4\n", "--1--   SCHED[2]:  acquired lock", "(", ")", ", ", "0x1", "[sync]", "exit_group( 0 )",
     "mmap(", "NULL, 4096, PROT_READ, MAP_PRIVATE, 3, 0", ") = 0x1000", " <unfinished ...>", "<... mmap resumed>",
     "clone(flags=", "CLONE_VM", ") = 7", "7 ", '"', "{", "}", "+++ killed by SIGKILL +++", "= ?", "-1 ENOENT", "|"]
)  # fmt: skip


@bounded
@given(
    first=st.sampled_from(["I  00001000,4\n", "brk(NULL) = 0x1000\n"]), atoms=st.lists(_ATOMS, max_size=30)
)
def test_any_sequence_of_the_formats_own_words(tmp_path: Path, first: str, atoms: list[str]) -> None:
    either_workload_or_one_line(tmp_path / "f", (first + "".join(atoms) + "\n").encode())
