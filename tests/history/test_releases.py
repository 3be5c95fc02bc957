"""The rows that ship: each names a choice on every axis, and a machine of each runs."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

import polymmu_history
from polymmu import Machine, plugins, variants
from polymmu.cli.main import main
from polymmu.description.model import KernelChoice
from polymmu.description.releases import load_row
from polymmu.hooks import ArchKernel

RELEASES = Path(polymmu_history.__file__).parent / "releases"
NAMES = sorted(path.stem for path in RELEASES.glob("*.yaml"))


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows as they are in this tree, whatever is installed."""

    def with_ours(group: str) -> object:
        if group != "polymmu.releases":
            return entry_points(group=group)
        value = declared()[group]["history"]
        return [EntryPoint(name="history", value=value, group=group)]

    monkeypatch.setattr(plugins, "entry_points", with_ours)


def declared() -> dict[str, dict[str, str]]:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    points: dict[str, dict[str, str]] = project["entry-points"]
    return points


def test_there_is_a_row_for_each_release_that_is_promised() -> None:
    assert {"2.6.9", "2.6.10", "2.6.11", "2.6.12", "2.6.39", "3.0"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_names_a_choice_on_every_axis_and_they_make_sense_together(name: str) -> None:
    row = load_row(str(RELEASES / f"{name}.yaml"))
    text = (RELEASES / f"{name}.yaml").read_text()
    axes = {*variants.VARIANTS, "i_mmap_lock"} - {
        "ops"
    }  # whose steps an arch takes is no matter of a release
    assert all(f"  {axis}: " in text for axis in axes)
    assert variants.classes(row.kernel)
    assert row.summary


def test_all_rows_name_the_same_axes() -> None:
    keys = {
        tuple(line.split(":")[0] for line in path.read_text().splitlines())
        for path in RELEASES.glob("*.yaml")
    }
    assert len(keys) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_of_each_release_runs(name: str) -> None:
    machine = Machine.from_file("x86_64", sets=["memory=64 MiB", "cpus=2", f"kernel={name}"])
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    addr = mm.mmap(64 << 12, "rw")
    machine.cpus[0].store(addr, b"hello")
    assert machine.cpus[0].load(addr, 5) == b"hello"
    mm.munmap(addr, 64 << 12)
    mm.exit()
    report = machine.report().to_dict()
    assert report["tables"]["live"] == 0
    assert report["provenance"]["set"] == ["memory=64 MiB", "cpus=2", f"kernel={name}"]


@pytest.mark.parametrize(
    ("release", "gather", "lock"),
    [("2.6.11", "PercpuGather", "spin"), ("2.6.39", "PercpuGather", "spin"), ("3.0", "Linked30Gather", "mutex"),
     ("3.8", "Linked38Gather", "mutex"), ("3.15", "Linked315Gather", "mutex"), ("4.13", "Linked413Gather", "mutex"),
     ("6.13", "LinkedGather", "mutex")],
)  # fmt: skip
def test_a4_1_which_release_gathered_how(release: str, gather: str, lock: str) -> None:
    kernel: ArchKernel = Machine.from_file("x86_64", sets=["memory=64 MiB", f"kernel={release}"]).kernel
    assert type(kernel.variants.gather).__name__ == gather
    assert kernel.description.kernel.i_mmap_lock == lock


def test_one_key_more_and_the_row_still_holds() -> None:
    sets = ["memory=64 MiB", "kernel.release=2.6.39", "kernel.gather=linked"]
    choice = Machine.from_file("x86_64", sets=sets).description.kernel
    assert (choice.release, choice.gather, choice.i_mmap_lock) == ("2.6.39", "linked", "spin")


# ---------------------------------------------------------------------- polymmu validate
MACHINE = "name: m\nextends: x86_64\n"


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    def checked(text: str) -> str:
        file = tmp_path / "f.yaml"
        file.write_text(text)
        status = main(["validate", str(file)])
        out, err = capsys.readouterr()
        assert (status == 0) == (out == f"{file}: fine\n")
        return str(err).replace(f"{tmp_path}/", "").removeprefix("polymmu: ").strip()

    yield checked


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MACHINE + "kernel: 2.6.11\n", ""),
        (MACHINE + "kernel: 2.6.111\n", "f.yaml:3:9: kernel.release: unknown release '2.6.111'"),
        (MACHINE + "kernel: {gather: precpu}\n", "f.yaml: kernel.gather: unknown gather 'precpu'"),
        (MACHINE + "kernel: {gather: percpu}\n", "f.yaml: kernel.gather: a per-CPU gather cannot sleep"),
        ("release: 1\nkernel: {gather: percpu, i_mmap_lock: spin}\n", ""),
        ("release: 1\nkernel: {gather: precpu}\n", "f.yaml: kernel.gather: unknown gather 'precpu'"),
        ("release: 1\nkernel: {gather: percpu}\n", "f.yaml: kernel.gather: a per-CPU gather cannot sleep"),
        ("release: 1\nkernel: {grather: x}\n", "f.yaml:2:10: kernel: unknown key 'grather'"),
    ],
)
def test_validate_knows_releases_and_the_names_of_generations(text: str, told: str, check: object) -> None:
    assert callable(check)
    said = check(text)
    assert said.startswith(told)
    assert said.count("\n") == 0
    assert bool(said) == bool(told)


def test_every_row_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-q", *(str(RELEASES / f"{name}.yaml") for name in NAMES)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("axis", variants.VARIANTS)
def test_every_generation_and_bug_says_when_it_came_and_what_it_gets_wrong(axis: str) -> None:
    """Of itself: what its base says is another's. A known bug gets something wrong."""
    known = {**polymmu_history.kernel_variants()[axis], **variants.VARIANTS[axis]}
    for name, made in known.items():
        assert made.__dict__["since"], name
        assert "wrong" in made.__dict__, name
        assert made.wrong or not name.startswith("bug-"), name
        assert made.__doc__, name
    assert not variants.VARIANTS[axis][getattr(KernelChoice(), axis)].wrong
    page = (Path(__file__).parents[2] / "docs" / "generations.md").read_text()
    assert f"<!-- generations: {axis} -->" in page
