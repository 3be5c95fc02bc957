"""Which file is what, compressed or not, and the plugins that read other formats."""

from __future__ import annotations

import gzip
import hashlib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polymmu.errors import PluginMistake, UserMistake
from polymmu.workload import plugins as seam
from polymmu.workload.model import Workload
from polymmu.workload.plugins import hookimpl
from polymmu.workload.readers import open_workload
from tests.workload.samples import PLUGINS, TRACES, read, save, small_columns

LOG = b"I  0401ab70,3\n S 1fff000768,8\n"


def test_content_decides_and_the_suffix_does_not(tmp_path: Path) -> None:
    npz = save(tmp_path / "really-npz.txt", small_columns())
    assert read(npz).format == "mmtrace-npz"
    (tmp_path / "really-text.npz").write_bytes(LOG)
    assert read(tmp_path / "really-text.npz").format == "lackey"
    strace = TRACES / "strace" / "sort.strace.txt.gz"
    assert read(strace).format == "strace"


def test_a_gzipped_log_says_what_the_plain_one_says_and_is_hashed_as_it_lies(tmp_path: Path) -> None:
    packed = gzip.compress(LOG[:14]) + gzip.compress(LOG[14:])  # two members, as concatenated files have
    (tmp_path / "log.gz").write_bytes(packed)
    workload = read(tmp_path / "log.gz")
    assert workload.accesses is not None
    assert len(workload.accesses) == 2
    assert workload.sha256 == hashlib.sha256(packed).hexdigest()


def test_a_zstd_log_says_what_the_plain_one_says(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="needs the extra polymmu[zstd]")
    packed = zstandard.ZstdCompressor().compress(LOG)
    (tmp_path / "log.zst").write_bytes(packed)
    assert len(read(tmp_path / "log.zst").accesses) == 2  # type: ignore[arg-type]
    (tmp_path / "cut.zst").write_bytes(packed[:-4])
    with pytest.raises(UserMistake, match="zstd data"):
        read(tmp_path / "cut.zst")


def test_zstd_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "log.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    with pytest.raises(UserMistake, match=r"pip install 'polymmu\[zstd\]'"):
        read(tmp_path / "log.zst")


def test_parquet_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + bytes(20))
    with pytest.raises(UserMistake, match=r"pip install 'polymmu\[parquet\]'"):
        read(tmp_path / "t.parquet")


def test_parquet_holds_the_same_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra polymmu[parquet]")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra polymmu[parquet]")
    import json

    columns = small_columns()
    table = pyarrow.table({name: columns[name] for name in ("op", "vaddr", "size")})
    extra = {name: columns[name].tolist() for name in columns if name.startswith(("mm_", "thr_", "vma_"))}
    extra["meta"] = json.loads(str(columns["meta"]))
    path = tmp_path / "t.parquet"
    parquet.write_table(table.replace_schema_metadata({"mmtrace": json.dumps(extra)}), path)
    ours, npz = read(path), read(save(tmp_path / "t.npz", columns))
    assert (ours.calls, ours.initial, ours.threads, ours.meta) == (
        npz.calls,
        npz.initial,
        npz.threads,
        npz.meta,
    )
    assert ours.accesses.vaddr.tolist() == npz.accesses.vaddr.tolist()  # type: ignore[union-attr]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserMistake, match="the file is damaged"):
        read(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"scenario: 1\nname: x\n", "is a scenario, not a trace; polymmu run MACHINE FILE runs it"),
        (b"\x7fELF\x02\x01\x01" + bytes(64), "is no workload that can be read"),
        (b"just some prose\n", "is no workload that can be read"),
        (b"\x1f\x8b\x08\x00garbage", "the gzip data"),
        (gzip.compress(LOG * 1000, mtime=0)[:-6], "the gzip data breaks off"),
        (gzip.compress(LOG, mtime=0)[:-8] + bytes(8), "the gzip data is damaged"),
        (b"PK\x03\x04 not a zip", "the archive is damaged"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserMistake) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="No such file"):
        read(tmp_path / "absent")
    with pytest.raises(UserMistake, match="is a directory"):
        read(tmp_path)


def _plugin(answer: Any) -> Any:
    @hookimpl
    def read_workload(path: Path) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SimpleNamespace(read_workload=read_workload)


def test_plugins_are_asked_in_order_until_one_answers(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(LOG)
    mine = Workload(name="f", sha256="", format="mine")
    assert open_workload(tmp_path / "f", [("a", _plugin(None)), ("b", _plugin(mine)), *PLUGINS]) is mine
    assert open_workload(tmp_path / "f", [*PLUGINS, ("z", _plugin(mine))]).format == "lackey"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            ZeroDivisionError("oops\nmore"),
            "plugin 'mine': hook read_workload: raised ZeroDivisionError: oops",
        ),
        (42, "plugin 'mine': hook read_workload: returned int, not Workload or None"),
    ],
)
def test_a_plugin_that_fails_is_named(tmp_path: Path, answer: Any, told: str) -> None:
    (tmp_path / "f").write_bytes(LOG)
    with pytest.raises(PluginMistake) as caught:
        open_workload(tmp_path / "f", [("mine", _plugin(answer))])
    assert str(caught.value) == told


def test_a_users_mistake_found_by_a_plugin_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(LOG)
    with pytest.raises(UserMistake, match=r"^f: line 3$") as caught:
        open_workload(tmp_path / "f", [("mine", _plugin(UserMistake("line 3", place="f")))])
    assert not isinstance(caught.value, PluginMistake)


def test_a_hook_with_an_unknown_argument_is_refused(tmp_path: Path) -> None:
    @hookimpl
    def read_workload(nonsense: int) -> None:
        raise AssertionError(nonsense)

    (tmp_path / "f").write_bytes(LOG)
    with pytest.raises(PluginMistake, match="nonsense"):
        open_workload(tmp_path / "f", [("mine", SimpleNamespace(read_workload=read_workload))])


def test_installed_plugins_come_sorted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("strace", "polymmu_strace", seam.GROUP),
        EntryPoint("lackey", "polymmu_lackey", seam.GROUP),
    ]
    monkeypatch.setattr("polymmu.plugins.entry_points", lambda group: points if group == seam.GROUP else [])
    seam.installed_plugins.cache_clear()
    try:
        assert [name for name, _ in seam.installed_plugins()] == ["lackey", "strace"]
    finally:
        seam.installed_plugins.cache_clear()
