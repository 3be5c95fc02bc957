"""The JSON Schema: it accepts what the loader accepts, refuses what it can; the committed one is current."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
import yaml

from polymmu.description.load import load_machine, to_plain
from polymmu.description.model import MachineDescription
from polymmu.description.schema import machine_schema
from polymmu.errors import UserMistake

ROOT = Path(__file__).parents[2]
HEAD: dict[str, Any] = {"name": "m", "arch": "toy", "memory": "1 GiB"}
L1 = {"level": 1, "page_sizes": ["4 KiB"], "entries": 64, "ways": 4}
EXTENDING = {"name": "m", "extends": "./base.yaml"}


@pytest.fixture(scope="module")
def schema(sections: Mapping[str, type]) -> dict[str, Any]:
    """The schema for the test arches, itself checked."""
    made = machine_schema(sections)
    jsonschema.Draft7Validator.check_schema(made)
    return made


def accepts(schema: dict[str, Any], value: Any) -> bool:
    return bool(jsonschema.Draft7Validator(schema).is_valid(value))


@pytest.mark.parametrize(
    "value",
    [
        HEAD,
        HEAD | {"memory": 1 << 30, "machine": 1, "cpus": 64, "seed": 5, "summary": "s"},
        HEAD | {"tlbs": {"L1": L1 | {"holds": ["fetch", "load", "store"], "replacement": "plru"}}},
        HEAD | {"toy": {"levels": 5, "tagged": False, "paging": "2level", "hole": "8 KiB"}} | {"toy": {}},
        {"name": "m", "arch": "other", "memory": "1 GiB", "other": {"size": 3}},
    ],
)
def test_loader_and_schema_accept(
    value: dict[str, Any], schema: dict[str, Any], load: Callable[..., MachineDescription]
) -> None:
    load(yaml.safe_dump(value))
    assert accepts(schema, value)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        HEAD | {"memory": "4 KB"},
        HEAD | {"memory": 4096},
        HEAD | {"memory": -1},
        HEAD | {"machine": 2},
        HEAD | {"cpus": 0},
        HEAD | {"cpus": "4"},
        HEAD | {"cpus": True},
        HEAD | {"cpus": None},
        HEAD | {"tlb": {}},
        HEAD | {"name": "a b"},
        HEAD | {"arch": "nothing"},
        HEAD | {"kernel": "a b"},
        HEAD | {"kernel": ["3.0"]},
        HEAD | {"kernel": {"gather": 8}},
        HEAD | {"tlbs": {"L1": {"entries": 4}}},
        HEAD | {"tlbs": {"L.1": L1}},
        HEAD | {"tlbs": {"L1": L1 | {"replacement": "lur"}}},
        HEAD | {"tlbs": {"L1": L1 | {"page_sizes": "4 KiB"}}},
        HEAD | {"tlbs": {"L1": L1 | {"page_sizes": []}}},
        HEAD | {"tlbs": {"L1": L1 | {"holds": ["load", "load"]}}},
        HEAD | {"tlbs": {"L1": None}},
        HEAD | {"toy": {"levels": 6}},
        HEAD | {"toy": {"tagged": "on"}},
        HEAD | {"toy": {"nothing": 1}},
        HEAD | {"other": {"size": 1}},
        HEAD | {"arch": "other"},
        EXTENDING | {"extends": 4},
        {"extends": "./base.yaml"},
    ],
)
def test_loader_and_schema_refuse(value: object, schema: dict[str, Any], refusal: Callable[..., str]) -> None:
    assert refusal(yaml.safe_dump(value))
    assert not accepts(schema, value)


@pytest.mark.parametrize(
    ("more", "is_fine"),
    [
        ({}, True),
        ({"tlbs": {"L2": {"entries": 5}, "L1": None}, "cpus": None, "kernel": None}, True),
        ({"toy": {"levels": 5}, "other": None}, True),
        ({"tlbs": {"L2": {"entires": 5}}}, False),
        ({"memory": "4 KB"}, False),
        ({"arch": "nothing"}, False),
    ],
)
def test_a_file_that_extends_may_be_partial_but_not_wrong(
    more: dict[str, Any], is_fine: bool, schema: dict[str, Any]
) -> None:
    assert accepts(schema, EXTENDING | more) is is_fine


def test_every_key_has_its_sentence_and_its_default(schema: dict[str, Any]) -> None:
    whole = schema["definitions"]["whole"]["properties"]
    assert whole["cpus"] == {
        "description": "number of CPUs", "type": "integer", "minimum": 1, "maximum": 64, "default": 1,
    }  # fmt: skip
    assert whole["costs"]["properties"]["ipi"]["default"] == 2000
    assert all("description" in key for key in whole.values())


SHIPPED: dict[str, type] = {
    arch: importlib.import_module(f"polymmu_{arch}").config_class()
    for arch in ("ia64", "ppc64", "s390", "sparc64", "x86", "x86_64")
}


def test_the_committed_schema_is_the_one_the_code_makes() -> None:
    committed = (ROOT / "docs" / "schema" / "machine.schema.json").read_text(encoding="utf-8")
    assert committed == json.dumps(machine_schema(SHIPPED), indent=2) + "\n"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "polymmu_machines").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_schema_accepts_every_shipped_machine_as_written_and_as_merged(
    path: Path, install: Callable[[str, str], None]
) -> None:
    install("polymmu", "polymmu_machines")
    schema = machine_schema(SHIPPED)
    assert accepts(schema, yaml.safe_load(path.read_text(encoding="utf-8")))
    assert accepts(schema, to_plain(load_machine(str(path), section_class_of=SHIPPED.__getitem__)))


def test_an_arch_whose_name_is_a_key_is_refused(sections: Mapping[str, type]) -> None:
    with pytest.raises(UserMistake, match="an arch cannot be named 'cpus'"):
        machine_schema({"cpus": sections["toy"]})


def test_a_section_with_a_type_that_no_file_can_hold_is_refused() -> None:
    cls = attrs.make_class("Odd", {"share": attrs.field(type=float)})
    with pytest.raises(UserMistake, match=r"Odd\.share: a machine file has no <class 'float'>"):
        machine_schema({"toy": cls})


def test_a_section_that_is_no_attrs_class_is_refused() -> None:
    with pytest.raises(
        UserMistake, match="int describes a part of a machine file, so it must be an attrs class"
    ):
        machine_schema({"toy": int})
