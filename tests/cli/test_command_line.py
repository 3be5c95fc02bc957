"""What a user types and gets: output on stdout, messages on stderr, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polymmu.cli.main import main

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "examples" / "sort.npz"


def run(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(argv)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_needs_neither_numpy_nor_numba() -> None:
    code = (
        "import sys\n"
        "from polymmu.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'numba', 'rich', 'yaml', 'attrs', 'pluggy'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy & {'numpy', 'numba', 'rich'} else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "COMMAND" in done.stdout


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("--version", capsys=capsys)
    assert (status, out) == (0, "polymmu 0.1.0\n")


def test_run_json_has_the_promised_shape(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run("run", "x86_64", str(TRACE), "--format", "json", "-q", capsys=capsys)
    value: dict[str, Any] = json.loads(out)
    assert status == 0, err
    assert {
        "schema", "machine", "arch", "workload", "driver", "accesses", "tlb", "walk", "faults", "tables",
        "pages", "gather", "shootdown", "flushes", "latency", "cycles", "violations", "provenance",
    } <= value.keys()  # fmt: skip
    assert value["accesses"]["total"] == sum(value["accesses"][k] for k in ("fetch", "load", "store"))
    assert {"name", "cpu", "hits", "misses", "compulsory", "evictions", "flushed"} <= value["tlb"][0].keys()
    assert {"version", "machine_sha256", "workload_sha256", "set"} <= value["provenance"].keys()
    assert {"issued", "needed", "redundant", "missing", "by_call"} == value["flushes"].keys()
    assert value["tables"]["live"] == 0, "the program exited; no table may be left"


def test_same_run_twice_gives_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    first = run("run", "x86_64", str(TRACE), "--format", "json", "-q", capsys=capsys)
    assert run("run", "x86_64", str(TRACE), "--format", "json", "-q", capsys=capsys) == first


def test_set_changes_the_machine_and_is_in_the_provenance(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(
        "run", "x86_64", str(TRACE), "--set", "tlbs.L2.entries=64", "--set", "tlbs.L2.ways=4", "--format", "json",
        "--seed", "7", "-q", capsys=capsys,
    )  # fmt: skip
    value = json.loads(out)
    assert value["provenance"]["set"] == ["tlbs.L2.entries=64", "tlbs.L2.ways=4", "seed=7"]
    _, plain, _ = run("run", "x86_64", str(TRACE), "--format", "json", "-q", capsys=capsys)
    assert json.loads(plain)["provenance"]["machine_sha256"] != value["provenance"]["machine_sha256"]


def test_compare_shows_machines_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("compare", str(TRACE), "x86", "x86-pae", "x86_64", "skylake", "-q", capsys=capsys)
    assert status == 0
    header = out.splitlines()[0].split()
    assert header == ["machine", "x86", "x86-pae", "x86_64", "skylake"]
    _, out, _ = run("compare", str(TRACE), "x86", "skylake", "--format", "json", "-q", capsys=capsys)
    value = json.loads(out)
    assert value["schema"] == 1
    assert [each["machine"] for each in value["runs"]] == ["x86", "skylake"]


def test_addresses_above_4_gib_are_relocated_on_a_32_bit_machine_and_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = run("run", "x86", str(TRACE), "--format", "json", "-q", capsys=capsys)
    value = json.loads(out)
    # The recording's stack at 0x1ffefff000 is the only mapping above 3 GiB.
    assert [row["start"] for row in value["relocated"]] == ["0x1ffefff000"]
    assert value["relocated_mappings"] == 1


def test_lists_are_sorted_objects_with_names(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("arches", "machines"):
        status, out, _ = run(command, "--format", "json", capsys=capsys)
        names = [row["name"] for row in json.loads(out)]
        assert status == 0
        assert names == sorted(names)
    assert {"x86", "x86-pae", "x86_64", "x86_64-la57", "pentium4", "nehalem", "skylake", "zen"} <= set(names)


def test_output_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "arches.json"
    status, out, _ = run("arches", "--format", "json", "--output", str(target), capsys=capsys)
    assert (status, out) == (0, "")
    assert "x86" in [row["name"] for row in json.loads(target.read_text())]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("run", "x86_46", str(TRACE)), "x86_46"),
        (("run", "x86_64", "no-such-file.npz"), "no-such-file.npz"),
        (("run", "x86_64", str(TRACE), "--set", "tlbs.L2.entires=4"), "entires"),
        (("run", "x86_64", str(TRACE), "--output", "/nonexistent/x"), "/nonexistent/x"),
        (("run", "x86_64"), "WORKLOAD"),
        (("frobnicate",), "frobnicate"),
        (("validate", "no-such-file.yaml"), "no-such-file.yaml"),
        (("translate", "x86_64", "--memory", "no-such-image", "0"), "no-such-image"),
        (("translate", "x86_64", "--memory", str(TRACE), "0"), "table_pa"),
        (("record", "-o", "x.npz", "--"), "PROGRAM"),
    ],
)
def test_mistake_is_one_line_and_exit_2(
    argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(*argv, capsys=capsys)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_validate_tells_every_mistake_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("machine: 1\nname: lab\narch: x86_46\nmemory: 16 GB\ncpus: none\n")
    status, _, err = run("validate", str(file), capsys=capsys)
    assert status == 2
    assert f"{file}:3:7: " in err
    assert f"{file}:4:9: " in err
    assert f"{file}:5:7: " in err


def test_validate_says_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("machine: 1\nname: lab\nextends: skylake\ncpus: 2\n")
    assert run("validate", str(file), capsys=capsys)[:2] == (0, f"{file}: fine\n")


def test_schema_is_draft_07(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("schema", "machine", capsys=capsys)
    assert status == 0
    assert "draft-07" in json.loads(out)["$schema"]


def test_our_own_fault_is_exit_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from polymmu import registry

    def broken() -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(registry, "installed_arches", broken)
    status, _, err = run("arches", capsys=capsys)
    assert status == 3
    assert "broken on purpose" in err
    assert "fault of polymmu itself" in err


def test_interrupt_is_exit_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from polymmu import registry

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "installed_arches", interrupted)
    assert run("arches", capsys=capsys)[0] == 130
