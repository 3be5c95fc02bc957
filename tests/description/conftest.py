"""What these tests read machines with: architectures of their own, and packages made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, PathDistribution
from pathlib import Path
from typing import Literal, Protocol

import attrs
import pytest
from attrs import field

from polymmu import plugins
from polymmu.description.load import load_machine_text
from polymmu.description.mistakes import unknown
from polymmu.description.model import MachineDescription, doc
from polymmu.errors import UserMistake


def _check_even(section: object, attribute: object, value: int) -> None:
    if value % 2:
        raise ValueError(f"{value} is odd")


@attrs.frozen(kw_only=True)
class Toy:
    """The section of the arch ``toy``: one field of every kind an arch may use."""

    levels: int = field(default=4, metadata=doc("table levels", choices=(4, 5)))
    tagged: bool = field(default=True, metadata=doc("address spaces have numbers"))
    paging: Literal["2level", "pae"] = field(default="pae", metadata=doc("format of entries"))
    banks: int = field(default=2, metadata=doc("an even number"), validator=_check_even)
    hole: int = field(default=4096, metadata=doc("bytes nobody may map", unit="size"))

    def __attrs_post_init__(self) -> None:
        if self.paging == "2level" and self.levels == 5:
            raise ValueError("2level paging has no five levels")


@attrs.frozen(kw_only=True)
class Other:
    """The section of the arch ``other``."""

    size: int = field(metadata=doc("something every machine must say"))


SECTIONS: dict[str, type] = {"other": Other, "toy": Toy}


def section_of(arch: str) -> type:
    """As the registry of architectures would answer."""
    if arch not in SECTIONS:
        raise UserMistake(unknown("architecture", arch, SECTIONS))
    return SECTIONS[arch]


@pytest.fixture(scope="session")
def section_class_of() -> Callable[[str], type]:
    """The test arches, as the loader asks for them."""
    return section_of


@pytest.fixture(scope="session")
def sections() -> Mapping[str, type]:
    """The test arches."""
    return SECTIONS


class Load(Protocol):
    """``load_machine_text`` with the test arches."""

    def __call__(self, text: str, sets: Sequence[str] = ()) -> MachineDescription: ...


@pytest.fixture(scope="session")
def load() -> Load:
    """Read the text of ``f.yaml``."""

    def read(text: str, sets: Sequence[str] = ()) -> MachineDescription:
        return load_machine_text(text, filename="f.yaml", section_class_of=section_of, sets=sets)

    return read


@pytest.fixture(scope="session")
def refusal(load: Load) -> Callable[..., str]:
    """The message about the text of ``f.yaml``."""

    def read(text: str, sets: Sequence[str] = ()) -> str:
        with pytest.raises(UserMistake) as caught:
            load(text, sets)
        return str(caught.value)

    return read


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Make a distribution that brings the package ``package`` of machines (``group``); hide what is installed."""
    points: list[EntryPoint] = []

    def add(distribution: str, package: str, group: str = "polymmu.machines") -> None:
        info = tmp_path / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{distribution} = {package}\n")
        points.extend(PathDistribution(info).entry_points)

    monkeypatch.setattr(plugins, "entry_points", lambda group: [p for p in points if p.group == group])
    monkeypatch.syspath_prepend(str(tmp_path))
    return add
