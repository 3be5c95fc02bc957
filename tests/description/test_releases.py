# ruff: noqa: E501 - a message stands here as the user sees it: on one line
"""``kernel: "2.6.11"``: rows of names, one per release, from installed packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import jsonschema
import pytest
import yaml

from polymmu.description.load import load_machine_text, sha256_of, to_plain
from polymmu.description.mistakes import Problems
from polymmu.description.model import KernelChoice, MachineDescription
from polymmu.description.schema import machine_schema
from polymmu.description.yaml_source import Mapping, parse_yaml
from tests.description.conftest import section_of

Load = Callable[..., MachineDescription]
HEAD = "name: m\narch: toy\nmemory: 1 GiB\n"
ROWS = {
    "2.6.9": "release: 1\nsummary: s\nkernel: {gather: old, i_mmap_lock: spin}\n",
    "2.6.10": "release: 1\nkernel: {gather: newer, i_mmap_lock: spin, zap_block: 8}\n",
    "3.0": "release: 1\nkernel: {gather: newest}\n",
}


@pytest.fixture
def rows(install: Callable[..., None], tmp_path: Path) -> Path:
    """The package with the rows."""
    return with_rows(install, tmp_path, **ROWS)


def with_rows(install: Callable[..., None], tmp_path: Path, **texts: str) -> Path:
    package = tmp_path / f"releases_of_{tmp_path.name}"  # imported once and for all
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name, text in texts.items():
        (package / f"{name}.yaml").write_text(text)
    install("some", package.name, "polymmu.releases")
    return package


def kernel_of(load: Load, text: str, *sets: str) -> KernelChoice:
    return load(HEAD + text, sets).kernel


# ---------------------------------------------------------------------- what a release means
@pytest.mark.parametrize(
    "text",
    ['kernel: "2.6.10"', "kernel: 2.6.10", 'kernel: {release: "2.6.10"}', "kernel: {release: 2.6.10}"],
)
def test_one_word_is_short_for_the_release_whose_row_is_laid_below(text: str, load: Load, rows: Path) -> None:
    expected = KernelChoice(release="2.6.10", gather="newer", i_mmap_lock="spin", zap_block=8)
    assert kernel_of(load, text) == expected
    assert kernel_of(load, "", f"--set {text}".removeprefix("--set ").replace(": ", "=", 1)) == expected


def test_what_yaml_would_take_for_a_number_is_taken_as_it_is_written(load: Load, rows: Path) -> None:
    assert kernel_of(load, "kernel: 3.0").gather == "newest"
    assert kernel_of(load, "", "kernel=3.0").gather == "newest"
    assert kernel_of(load, "", "kernel.release=3.0").gather == "newest"


def test_keys_beside_the_release_win_over_it_whichever_comes_first(load: Load, rows: Path) -> None:
    mine = kernel_of(load, 'kernel: {gather: mine, release: "2.6.10"}')
    assert (mine.release, mine.gather, mine.zap_block) == ("2.6.10", "mine", 8)
    assert kernel_of(load, "kernel: {gather: mine}", "kernel=2.6.10") == mine
    assert kernel_of(load, "", "kernel.gather=mine", "kernel.release=2.6.10") == mine
    assert kernel_of(load, "kernel: 3.0", "kernel.release=2.6.10", "kernel.gather=mine") == mine


def test_null_takes_a_choice_of_the_row_away(load: Load, rows: Path) -> None:
    assert kernel_of(load, "kernel: {release: 2.6.10, gather: x}", "kernel.gather=null").gather == "newer"
    assert kernel_of(load, "kernel: 2.6.10", "kernel.release=null") == KernelChoice()
    assert kernel_of(load, "kernel: 2.6.10", "kernel=null") == KernelChoice()


def test_an_extending_machine_keeps_the_release_or_names_another(
    load: Load, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "base.yaml").write_text(HEAD + "kernel: 2.6.10\n")

    def extending(text: str) -> KernelChoice:
        return load_machine_text(
            f"name: x\nextends: ./base.yaml\n{text}",
            filename=str(tmp_path / "x.yaml"),
            section_class_of=section_of,
        ).kernel

    assert extending("").gather == "newer"
    assert extending("kernel: {zap_block: 3}") == attrs.evolve(extending(""), zap_block=3)
    assert extending("kernel: 2.6.9").gather == "old"


def test_a_scenario_may_name_one(rows: Path) -> None:
    over = parse_yaml('kernel: "2.6.9"', "s.yaml", Problems())
    assert isinstance(over, Mapping)
    made = load_machine_text(HEAD, filename="f.yaml", section_class_of=section_of, over=over)
    assert (made.kernel.release, made.kernel.gather) == ("2.6.9", "old")


def test_the_fingerprint_and_the_plain_form_know_it(load: Load, rows: Path) -> None:
    plain, old = load(HEAD), load(HEAD + "kernel: 2.6.9\n")
    assert to_plain(old)["kernel"]["release"] == "2.6.9"
    assert to_plain(old)["kernel"]["gather"] == "old"
    assert sha256_of(plain) != sha256_of(old) != sha256_of(load(HEAD + "kernel: 2.6.10\n"))


@pytest.mark.parametrize("value", ["2.6.10", 3.0, {"release": "2.6.10"}, {"release": 3.0, "zap_block": 8}])
def test_the_schema_takes_what_the_loader_takes(value: object, sections: dict[str, type], rows: Path) -> None:
    machine = {"name": "m", "arch": "toy", "memory": "1 GiB", "kernel": value}
    jsonschema.validate(machine, machine_schema(sections))
    text = yaml.safe_dump(machine)
    assert load_machine_text(text, filename="f.yaml", section_class_of=section_of).kernel.release


# ---------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kernel: "2.6.1"', "f.yaml:4:9: kernel.release: unknown release '2.6.1' (known: 2.6.9, 2.6.10, 3.0); did you mean '2.6.10'?"),
        ("kernel: {release: 4.0}", "f.yaml:4:19: kernel.release: unknown release '4.0' (known: 2.6.9, 2.6.10, 3.0); did you mean '3.0'?"),
        ("kernel: {release: [3.0]}", "f.yaml:4:19: kernel.release: found a list, expected one value"),
        ("kernel: [3.0]", "f.yaml:4:9: kernel: found a list, expected a mapping, or a release such as \"2.6.11\""),
        ("kernel: a b", "f.yaml:4:9: kernel.release: unknown release 'a b' (known: 2.6.9, 2.6.10, 3.0)\nf.yaml:4:9: kernel.release: 'a b' is not a release (digits, letters, . _ + -)"),
        ("kernel: {relase: 3.0}", "f.yaml:4:10: kernel: unknown key 'relase' (known: release, gather, table_free, i_mmap_lock, gather_batch, zap_block, fast_mode, vm_max_map_count, pagevec); did you mean 'release'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_a_line(
    text: str, message: str, refusal: Callable[..., str], rows: Path
) -> None:
    known = ", ".join(attribute.name for attribute in attrs.fields(KernelChoice))
    head, _, rest = message.partition("(known: release")
    if rest:  # whatever axes there are
        message = f"{head}(known: {known}{rest[rest.index(')') :]}"
    assert refusal(HEAD + text) == message


def test_an_option_is_named_as_it_was_typed(refusal: Callable[..., str], rows: Path) -> None:
    assert refusal(HEAD, ["kernel=2.6.8"]).startswith(
        "--set kernel=2.6.8: kernel.release: unknown release '2.6.8'"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("release: 1\nkernel: {gahter: old}\n", "3.0.yaml:2:10: kernel: unknown key 'gahter'"),
        ("release: 1\nkernel: {pagevec: 0}\n", "3.0.yaml:2:19: kernel.pagevec: 0 is less than 1"),
        ("release: 1\n", "3.0.yaml:1:1: missing 'kernel'"),
        ("kernel: {}\n", "3.0.yaml:1:1: missing 'release'"),
        ("release: 2\nkernel: {}\n", "3.0.yaml:1:10: release: 2 is not one of 1"),
        ("release: 1\nkernel: {release: 2.6.9}\n", "3.0.yaml:2:9: kernel: names another release; a row stands alone"),
        ("release: 1\nkernel: {}\nname: x\n", "3.0.yaml:3:1: unknown key 'name' (known: release, summary, kernel)"),
        ("release: 1\nkernel: 3.0\n", "3.0.yaml:2:9: kernel: found '3.0', expected a mapping"),
        ("- 3.0\n", "3.0.yaml:1:1: the file of a release is a mapping: lines of 'key: value'"),
        ("", "3.0.yaml:1:1: the file of a release is a mapping: lines of 'key: value'"),
    ],
)  # fmt: skip
def test_a_row_is_read_as_strictly_as_a_machine(
    row: str, message: str, refusal: Callable[..., str], install: Callable[..., None], tmp_path: Path
) -> None:
    package = with_rows(install, tmp_path, **{"3.0": row})
    told = refusal(HEAD + "kernel: 3.0")
    assert told.startswith(f"{package}/{message}")
    assert "\n" not in told


def test_where_nobody_brings_a_row_none_is_known(refusal: Callable[..., str], install: object) -> None:
    assert refusal(HEAD + "kernel: 3.0") == "f.yaml:4:9: kernel.release: unknown release '3.0' (known: none)"
