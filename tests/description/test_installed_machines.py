"""Machines that distributions bring, and the ones that ship with polymmu."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from polymmu.description.load import installed_machines, load_machine
from polymmu.description.model import MachineDescription
from polymmu.errors import UserMistake

Install = Callable[[str, str], None]
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MACHINES = Path(__file__).parents[2] / "configs" / "polymmu_machines"


def package(directory: Path, name: str, **texts: str) -> None:
    (directory / name).mkdir()
    (directory / name / "__init__.py").write_text("")
    for machine, text in texts.items():
        (directory / name / f"{machine}.yaml").write_text(text)


BASE = "name: base\nsummary: the base\narch: toy\nmemory: 1 GiB\n"


def test_machines_are_listed_by_name_with_their_distribution(install: Install, tmp_path: Path) -> None:
    package(tmp_path, "lab_one", zeta="name: zeta\nextends: base\n", base=BASE)
    package(tmp_path, "lab_two", alpha="name: alpha\nsummary: s\narch: [\n")
    install("one", "lab_one")
    install("two", "lab_two")
    broken = tmp_path / "lab_two" / "alpha.yaml"
    rows = [(m.name, m.summary, m.arch, m.distribution, m.version) for m in installed_machines()]
    assert rows == [
        (
            "alpha",
            f"{broken}:4:1: not YAML: expected the node content, but found '<stream end>' "
            "while parsing a flow node",
            "",
            "two",
            "1.0",
        ),
        ("base", "the base", "toy", "one", "1.0"),
        ("zeta", "", "toy", "one", "1.0"),
    ]


def test_one_name_from_two_distributions_is_refused_with_both(install: Install, tmp_path: Path) -> None:
    package(tmp_path, "twin_one", base=BASE)
    package(tmp_path, "twin_two", base=BASE)
    install("one", "twin_one")
    install("two", "twin_two")
    with pytest.raises(UserMistake) as caught:
        installed_machines()
    assert str(caught.value) == (
        "machine 'base' comes twice, with one 1.0 and with two 1.0; uninstall one of them"
    )


def test_an_unknown_name_is_told_with_what_is_known(
    install: Install, tmp_path: Path, section_class_of: Callable[[str], type]
) -> None:
    package(tmp_path, "known_ones", base=BASE, other=BASE)
    install("one", "known_ones")
    with pytest.raises(UserMistake) as caught:
        load_machine("bsae", section_class_of=section_class_of)
    assert str(caught.value) == (
        "unknown machine 'bsae' (known: base, other); did you mean 'base'?; a file's path ends with .yaml"
    )


def test_an_entry_point_that_is_no_package_of_files_is_refused(install: Install) -> None:
    install("absent", "no_such_package_of_machines")
    with pytest.raises(UserMistake, match="no_such_package_of_machines"):
        installed_machines()


def test_an_entry_point_to_something_else_is_refused(install: Install) -> None:
    install("odd", "json:loads")
    with pytest.raises(UserMistake) as caught:
        installed_machines()
    assert str(caught.value) == (
        "entry point 'odd' of odd 1.0 in 'polymmu.machines': 'json:loads' is not a package of files on disk"
    )


def test_listing_machines_imports_no_numpy_and_no_architecture() -> None:
    code = (
        "import sys; from polymmu.description.load import installed_machines; installed_machines();"
        "print([n for n in ('numpy', 'numba', 'polymmu_x86') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- the shipped ones


@pytest.fixture
def shipped(install: Install) -> Callable[[str], MachineDescription]:
    """Load a shipped machine with its real architecture."""
    install("polymmu", "polymmu_machines")

    def section(arch: str) -> type:
        found: type = importlib.import_module(f"polymmu_{arch}").config_class()
        return found

    return lambda name: load_machine(name, section_class_of=section)


@pytest.mark.parametrize("name", sorted(path.stem for path in MACHINES.glob("*.yaml")))
def test_a_shipped_machine_loads_and_is_named_after_its_file(
    name: str, shipped: Callable[[str], MachineDescription]
) -> None:
    machine = shipped(name)
    assert machine.name == name
    assert machine.summary
    assert machine.machine == 1


def test_the_plain_and_the_promised_machines_exist(shipped: Callable[[str], MachineDescription]) -> None:
    assert {
        "x86",
        "x86-pae",
        "x86_64",
        "x86_64-la57",
        "pentium4",
        "pentium4-pae",
        "nehalem",
        "skylake",
        "zen",
    } <= {machine.name for machine in installed_machines()}


@pytest.mark.parametrize(
    ("name", "tlbs"),
    [
        # CPUID leaf 2 descriptors 01h, 02h, 03h, 04h (Intel SDM vol. 2)
        (
            "x86",
            {
                "L1I": (1, "fetch", 32, 4, (4 * KIB,)),
                "L1I-4M": (1, "fetch", 2, 2, (4 * MIB,)),
                "L1D": (1, "load store", 64, 4, (4 * KIB,)),
                "L1D-4M": (1, "load store", 8, 4, (4 * MIB,)),
            },
        ),
        (
            "pentium4",
            {
                "L1I": (1, "fetch", 64, 64, (4 * KIB, 4 * MIB)),
                "L1D": (1, "load store", 64, 64, (4 * KIB, 4 * MIB)),
            },
        ),
        (
            "pentium4-pae",
            {
                "L1I": (1, "fetch", 64, 64, (4 * KIB, 2 * MIB)),
                "L1D": (1, "load store", 64, 64, (4 * KIB, 2 * MIB)),
            },
        ),
        (
            "nehalem",
            {
                "L1I": (1, "fetch", 128, 4, (4 * KIB,)),
                "L1I-2M": (1, "fetch", 7, 7, (2 * MIB,)),
                "L1D": (1, "load store", 64, 4, (4 * KIB,)),
                "L1D-2M": (1, "load store", 32, 4, (2 * MIB,)),
                "L2": (2, "fetch load store", 512, 4, (4 * KIB,)),
            },
        ),
        (
            "skylake",
            {
                "L1I": (1, "fetch", 128, 8, (4 * KIB,)),
                "L1I-2M": (1, "fetch", 8, 8, (2 * MIB,)),
                "L1D": (1, "load store", 64, 4, (4 * KIB,)),
                "L1D-2M": (1, "load store", 32, 4, (2 * MIB,)),
                "L1D-1G": (1, "load store", 4, 4, (GIB,)),
                "L2": (2, "fetch load store", 1536, 12, (4 * KIB, 2 * MIB)),
                "L2-1G": (2, "fetch load store", 16, 4, (GIB,)),
            },
        ),
        (
            "zen",
            {
                "L0I": (1, "fetch", 8, 8, (4 * KIB, 2 * MIB, GIB)),
                "L1I": (2, "fetch", 64, 64, (4 * KIB, 2 * MIB, GIB)),
                "L2I": (3, "fetch", 512, 8, (4 * KIB, 2 * MIB)),
                "L1D": (1, "load store", 64, 64, (4 * KIB, 2 * MIB, GIB)),
                "L2D": (2, "load store", 1536, 12, (4 * KIB, 2 * MIB)),
            },
        ),
    ],
)
def test_a_shipped_machine_has_the_geometry_its_sources_give(
    name: str,
    tlbs: dict[str, tuple[int, str, int, int, tuple[int, ...]]],
    shipped: Callable[[str], MachineDescription],
) -> None:
    found = {
        key: (tlb.level, " ".join(tlb.holds), tlb.entries, tlb.ways, tlb.page_sizes)
        for key, tlb in shipped(name).tlbs.items()
    }
    assert found == tlbs


def test_walk_caches_exist_where_the_mode_has_them(shipped: Callable[[str], MachineDescription]) -> None:
    def levels(name: str) -> dict[str, int]:
        return {key: cache.level for key, cache in shipped(name).walk_caches.items() if cache.entries}

    assert levels("x86") == levels("pentium4-pae") == {}
    assert levels("skylake") == {"PDE": 1, "PDPTE": 2, "PML4": 3}
    assert levels("x86_64-la57") == {"PDE": 1, "PDPTE": 2, "PML4": 3, "PML5": 4}
    assert shipped("x86_64-la57").section.levels == 5
    assert (shipped("x86").section.paging, shipped("x86-pae").section.paging) == ("2level", "pae")
