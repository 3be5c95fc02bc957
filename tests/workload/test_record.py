"""Recording programs: what needs valgrind is skipped where there is none, the rest is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polymmu.cli.record import record
from polymmu.errors import UserMistake
from polymmu.workload.execute import execute
from tests.workload.fake_machine import FakeMachine
from tests.workload.samples import PLUGINS, read

needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")


def test_without_valgrind_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserMistake, match="apt install valgrind") as caught:
        record(tmp_path / "t.npz", ["true"], PLUGINS)
    assert "\n" not in str(caught.value)


def test_without_a_recording_plugin_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="no installed plugin can record"):
        record(tmp_path / "t.npz", ["true"], [])


@needs_valgrind
def test_an_unknown_program_leaves_an_older_recording_alone(tmp_path: Path) -> None:
    out = tmp_path / "t.npz"
    out.write_text("older")
    with pytest.raises(UserMistake, match="no-such-program: no such program"):
        record(out, ["no-such-program"], PLUGINS)
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]
    assert out.read_text() == "older"


@needs_valgrind
def test_a_recording_is_complete_and_keeps_the_exit_status(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.npz"
    meta = record(out, ["sh", "-c", "echo out; echo err >&2; exit 3"], PLUGINS)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("out\n", "err\n")
    assert (meta["exit_status"], meta["whole_run"]) == (3, True)
    workload = read(out)
    assert workload.meta == meta
    assert workload.calls[-1].name == "exit_group"
    assert any(m.is_file and "x" in m.prot for m in workload.initial)
    result = execute(FakeMachine(), workload)
    assert (result.done, result.self_mapped_pages, result.refused) == (meta["window_len"], 0, [])
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


@needs_valgrind
def test_a_child_of_the_program_is_not_in_the_recording(tmp_path: Path) -> None:
    out = tmp_path / "t.npz"
    record(out, ["sh", "-c", "/bin/true; exit 0"], PLUGINS)
    machine = FakeMachine()
    result = execute(machine, read(out))
    assert (result.processes, result.self_mapped_pages) == (2, 0)
    assert all(mm.dead for mm in machine.mms)


@needs_valgrind
def test_ctrl_c_keeps_what_was_recorded(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole foreground group: the recorder and the program."""
    script = (
        "import sys, signal, os, threading, time\n"
        "from pathlib import Path\n"
        "import polymmu_lackey\n"
        "from polymmu.cli.record import record\n"
        "out = Path(sys.argv[1])\n"
        "def interrupt():\n"
        "    while not list(out.parent.glob('.polymmu-*/op')): time.sleep(0.05)\n"
        "    time.sleep(2)\n"
        "    os.killpg(0, signal.SIGINT)\n"
        "threading.Thread(target=interrupt, daemon=True).start()\n"
        "meta = record(out, ['sh', '-c', 'while :; do :; done'], [('lackey', polymmu_lackey)])\n"
        "sys.exit(0 if meta.get('partial') else 1)\n"
    )
    out = tmp_path / "t.npz"
    done = subprocess.run(
        [sys.executable, "-c", script, str(out)],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
        start_new_session=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    workload = read(out)
    assert workload.meta["partial"] is True
    assert workload.accesses is not None
    assert len(workload.accesses) == workload.meta["window_len"]
