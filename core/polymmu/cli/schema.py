"""``polymmu schema machine``: the JSON Schema (draft-07) of a file format, made from the code."""

from __future__ import annotations

import argparse
import json
from typing import Any

__all__ = ["add", "machine_schema", "run"]


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "schema", help="JSON Schema of a file format", description=__doc__
    )
    parser.add_argument("what", choices=("machine",), help="which file format")
    parser.set_defaults(run=run)


def machine_schema() -> dict[str, Any]:
    """The schema with every installed architecture's section."""
    from polymmu import registry
    from polymmu.description import schema

    return schema.machine_schema(
        {name: registry.arch_named(name).ops.config_class() for name in registry.installed_arches()}
    )


def run(options: argparse.Namespace) -> int:
    """Print it."""
    print(json.dumps(machine_schema(), indent=2))
    return 0
