"""``polymmu new-arch``: what it writes passes its own tests as written, and what it refuses it refuses in one line."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from polymmu.cli.main import main
from tests.door.beside import environment_with, run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated distribution."""
    directory = tmp_path_factory.mktemp("door") / "new"
    assert main(["new-arch", "gen_7", str(directory)]) == 0
    return directory


def test_the_distribution_passes_its_own_tests_and_the_kit(written: Path, tmp_path: Path) -> None:
    env = environment_with(written, tmp_path)
    done = run(env, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(written), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_the_kit_notices_what_its_author_breaks(written: Path, tmp_path: Path) -> None:
    """The generated tests are no decoration: one wrong bit, and they fail."""
    env = environment_with(written, tmp_path)
    plugin = written / "src" / "polymmu_gen_7" / "__init__.py"
    whole = plugin.read_text()
    right = "if flags & VM_WRITE and flags & VM_SHARED:"
    assert whole.count(right) == 1
    plugin.write_text(whole.replace(right, "if flags & VM_WRITE:"))
    try:
        done = run(env, "-m", "polymmu", "conformance", "gen_7", cwd=tmp_path)
    finally:
        plugin.write_text(whole)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed" in done.stdout


def test_it_is_listed_and_runs_from_its_machine_file(written: Path, tmp_path: Path) -> None:
    env = environment_with(written, tmp_path)
    arches = run(env, "-m", "polymmu", "arches", cwd=tmp_path)
    assert any(line.split()[:2] == ["gen_7", "gen_7:"] for line in arches.stdout.splitlines()), arches
    machine = written / "src" / "polymmu_gen_7_machines" / "gen_7.yaml"
    assert run(env, "-m", "polymmu", "validate", str(machine), cwd=tmp_path).stdout == f"{machine}: fine\n"


def test_it_builds_into_a_wheel_with_everything_in_it(written: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = ("pip", "wheel", "-q", "--no-index", "--no-build-isolation", "--no-deps", "-w", str(tmp_path))
    done = run(dict(os.environ), "-m", *command, str(written), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("polymmu_gen_7-0.1.0-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "polymmu_gen_7/__init__.py",
        "polymmu_gen_7/py.typed",
        "polymmu_gen_7_machines/gen_7.yaml",
        "polymmu_gen_7-0.1.0.dist-info/entry_points.txt",
    } <= names
    assert not any("test" in name for name in names)


def test_an_empty_directory_is_as_good_as_none(tmp_path: Path) -> None:
    assert main(["new-arch", "m68k", str(tmp_path)]) == 0
    assert (tmp_path / "src" / "polymmu_m68k" / "__init__.py").is_file()
    assert (tmp_path / ".gitignore").is_file()


def test_nothing_of_the_skeletons_own_is_left(written: Path) -> None:
    for path in written.rglob("*"):
        assert "NAME" not in path.name
        assert path.suffix != ".in"
        if path.is_file():
            assert "$name" not in path.read_text()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("M68k", "'M68k' cannot name an architecture"),
        ("68k", "'68k' cannot name an architecture"),
        ("m-68k", "'m-68k' cannot name an architecture"),
        ("m68k_", "'m68k_' cannot name an architecture"),
        ("m" * 32, "cannot name an architecture"),
        ("", "'' cannot name an architecture"),
        ("../up", "'../up' cannot name an architecture"),
        ("tlbs", "'tlbs' is a word of machine files"),
        ("on", "'on' is a word of machine files"),
        ("x86", "architecture 'x86' is installed already, by polymmu"),
        ("skylake", "a machine 'skylake' is installed already, by polymmu"),
        ("lackey", "a package 'polymmu_lackey' is installed already"),
    ],
)
def test_a_name_that_will_not_do_is_refused(
    name: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new"
    assert main(["new-arch", name, str(target)]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not target.exists()


def test_nothing_is_written_where_something_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    occupied, file, dangling = tmp_path / "occupied", tmp_path / "file", tmp_path / "dangling"
    occupied.mkdir()
    (occupied / "mine").write_text("kept")
    file.write_text("kept")
    dangling.symlink_to(tmp_path / "nowhere")
    for target, complaint in (
        (occupied, "the directory is not empty"),
        (file, "this is not a directory"),
        (dangling, "this is not a directory"),
        (file / "below", "Not a directory"),
    ):
        assert main(["new-arch", "m68k", str(target)]) == 2
        said = capsys.readouterr().err
        assert complaint in said
        assert said.count("\n") == 1
    assert [path.name for path in occupied.iterdir()] == ["mine"]
