"""``extends``: what is merged, what is not, and whose place a mistake gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polymmu.description.load import load_machine
from polymmu.description.model import MachineDescription
from polymmu.errors import UserMistake

Files = Callable[..., None]
Read = Callable[[str], MachineDescription]
Refused = Callable[[str], str]

EXPECTED = "expected a machine's name, or a file's path such as ./base.yaml"

BASE = """\
name: base
summary: the base
arch: toy
cpus: 2
memory: 1 GiB
tlbs:
  L1: {level: 1, page_sizes: [4 KiB, 2 MiB], entries: 64, ways: 4}
  L2: {level: 2, page_sizes: [4 KiB], entries: 1024, ways: 4}
walk_caches: {PDE: {level: 1, entries: 8, ways: 8}}
costs: {ipi: 7, fault: 8}
toy: {levels: 5}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write files into the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")

    write(base=BASE)
    return write


@pytest.fixture
def read(section_class_of: Callable[[str], type]) -> Read:
    """Load a file of the current directory."""
    return lambda name: load_machine(name, section_class_of=section_class_of)


@pytest.fixture
def refused(read: Read) -> Callable[[str], str]:
    """The message about a file of the current directory."""

    def message(name: str) -> str:
        with pytest.raises(UserMistake) as caught:
            read(name)
        return str(caught.value)

    return message


def test_mappings_merge_key_by_key_and_everything_else_replaces(files: Files, read: Read) -> None:
    files(
        top="name: top\nextends: ./base.yaml\ntlbs: {L1: {page_sizes: [8 KiB]}}\ncosts: {ipi: 9}\nseed: 3\n"
    )
    base, top = read("base.yaml"), read("top.yaml")
    assert top.tlbs["L1"].page_sizes == (8192,)
    assert (top.tlbs["L1"].entries, top.tlbs["L2"]) == (64, base.tlbs["L2"])
    assert (top.costs.ipi, top.costs.fault, top.seed, top.cpus) == (9, 8, 3, 2)
    assert top.section == base.section
    assert list(top.tlbs) == ["L1", "L2"]


def test_name_and_summary_are_not_inherited(files: Files, read: Read, refused: Refused) -> None:
    files(named="name: named\nextends: base.yaml\n", nameless="extends: base.yaml\n")
    assert (read("named.yaml").name, read("named.yaml").summary) == ("named", "")
    assert refused("nameless.yaml") == "nameless.yaml:1:1: missing 'name'"


def test_null_takes_an_inherited_key_away(files: Files, read: Read) -> None:
    files(
        top="name: top\nextends: base.yaml\n"
        "walk_caches: {PDE: null}\ntlbs: {L2: ~}\ncosts: {ipi: }\ncpus: null\n"
    )
    top = read("top.yaml")
    assert (top.walk_caches, list(top.tlbs)) == ({}, ["L1"])
    assert (top.costs.ipi, top.costs.fault, top.cpus) == (2000, 8, 1)


def test_null_for_what_is_not_inherited_is_a_mistake(files: Files, refused: Refused) -> None:
    files(top="name: top\nextends: base.yaml\nwalk_caches: {PDEs: null}\n")
    assert refused("top.yaml") == (
        "top.yaml:3:15: walk_caches.PDEs: no value, and nothing inherited that null could take away; "
        "did you mean 'PDE'?"
    )


def test_a_mistake_is_told_in_the_file_that_wrote_it(files: Files, refused: Refused) -> None:
    files(
        wrong=BASE.replace("entries: 64, ways: 4", "entries: 64, ways: 5").replace("cpus: 2", "cpus: two"),
        top="name: top\nextends: wrong.yaml\ntlbs:\n  L2: {ways: 7}\n  L2D: {entries: 64}\n",
    )
    assert refused("top.yaml").splitlines() == [
        "top.yaml:4:14: tlbs.L2.ways: 7 ways do not divide 1024 entries into whole sets",
        "top.yaml:5:8: tlbs.L2D: missing 'level', 'page_sizes', 'ways'; did you mean 'L2'?",
        "wrong.yaml:4:7: cpus: 'two' is not a whole number",
        "wrong.yaml:7:65: tlbs.L1.ways: 5 ways do not divide 64 entries into whole sets",
    ]


def test_a_path_is_looked_for_beside_the_file_that_names_it(files: Files, tmp_path: Path, read: Read) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "middle.yaml").write_text("name: middle\nextends: ../base.yaml\nseed: 5\n")
    files(top="name: top\nextends: deep/middle.yaml\n")
    assert (read("top.yaml").seed, read("top.yaml").cpus) == (5, 2)
    assert read(str(tmp_path / "top.yaml")) == read("top.yaml")


def test_a_circle_is_refused_with_the_chain(files: Files, refused: Refused) -> None:
    files(a="name: a\nextends: ./b.yaml\n", b="name: b\nextends: ./a.yaml\n", c="name: c\nextends: c.yaml\n")
    assert refused("a.yaml") == "b.yaml:2:10: extends: goes round in a circle: a.yaml -> b.yaml -> a.yaml"
    assert refused("c.yaml") == "c.yaml:2:10: extends: goes round in a circle: c.yaml -> c.yaml"


def test_a_chain_of_more_than_eight_files_is_refused(files: Files, read: Read, refused: Refused) -> None:
    files(**{f"m{n}": f"name: m{n}\nextends: m{n - 1}.yaml\n" for n in range(1, 9)})
    files(m0=BASE)
    assert read("m7.yaml").cpus == 2
    chain = " -> ".join(f"m{n}.yaml" for n in range(8, -1, -1))
    assert refused("m8.yaml") == f"m1.yaml:2:10: extends: more than 8 files: {chain}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("./none.yaml", "top.yaml:2:10: extends: none.yaml: cannot be read: No such file or directory"),
        ("[base]", f"top.yaml:2:10: extends: {EXPECTED}"),
        ("", f"top.yaml:2:9: extends: {EXPECTED}"),
        ('"a\\0.yaml"', f"top.yaml:2:10: extends: {EXPECTED}"),
        ("./", "top.yaml:2:10: extends: .: cannot be read: Is a directory"),
    ],
)  # fmt: skip
def test_a_base_that_cannot_be_read_is_told_at_extends(
    value: str, message: str, files: Files, refused: Refused
) -> None:
    files(top=f"name: top\nextends: {value}\n")
    assert refused("top.yaml") == message


def test_a_section_of_the_former_arch_can_be_taken_away(files: Files, read: Read, refused: Refused) -> None:
    files(
        kept="name: kept\nextends: base.yaml\narch: other\nother: {size: 1}\n",
        gone="name: gone\nextends: base.yaml\narch: other\nother: {size: 1}\ntoy: null\n",
    )
    assert refused("kept.yaml") == (
        "base.yaml:11:1: toy: section of another arch; delete it, or what extends brought with 'toy: null'"
    )
    assert read("gone.yaml").arch == "other"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"name: \xff\n", "odd.yaml:1:7: byte 0xff is not UTF-8; save as UTF-8"),
        (b"name: m\n# \xc3\xa4\n# \xc3\xa4 \xe9\n", "odd.yaml:3:5: byte 0xe9 is not UTF-8; save as UTF-8"),
        (b"\xef\xbb\xbfname: \xff\n", "odd.yaml:1:7: byte 0xff is not UTF-8; save as UTF-8"),
        ("name: m\n".encode("utf-16"), "odd.yaml:1:1: byte 0xff is not UTF-8; save as UTF-8"),
        (b"#" * ((1 << 20) + 1), "odd.yaml: longer than 1 MiB; a machine file is a page or two"),
    ],
)
def test_bytes_that_are_no_machine_file_are_refused(
    data: bytes, message: str, files: Files, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "odd.yaml").write_bytes(data)
    assert refused("odd.yaml") == message


def test_a_byte_order_mark_is_dropped(files: Files, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.replace("cpus: 2", "cpus: x").encode())
    assert refused("bom.yaml") == "bom.yaml:4:7: cpus: 'x' is not a whole number"


def test_a_file_that_is_not_there_is_told_by_its_name(files: Files, refused: Refused) -> None:
    assert refused("absent.yaml") == "absent.yaml: cannot be read: No such file or directory"
    assert refused("a\0.yaml") == "a\0.yaml: cannot be read: embedded null byte"
