"""``polymmu schema machine|scenario``: the JSON Schema (draft-07) of a file format, made from the code."""

from __future__ import annotations

import argparse
import json
from typing import Any

__all__ = ["add", "machine_schema", "run", "scenario_schema"]


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "schema", help="JSON Schema of a file format", description=__doc__
    )
    parser.add_argument("what", choices=("machine", "scenario"), help="which file format")
    parser.set_defaults(run=run)


def machine_schema() -> dict[str, Any]:
    """The schema of machine files with every installed architecture's section."""
    from polymmu.description import schema

    return schema.machine_schema(_sections())


def scenario_schema() -> dict[str, Any]:
    """The schema of scenario files."""
    from polymmu.description import schema

    return schema.scenario_schema(_sections())


def _sections() -> dict[str, type]:
    from polymmu import registry

    return {name: registry.arch_named(name).ops.config_class() for name in registry.installed_arches()}


def run(options: argparse.Namespace) -> int:
    """Print it."""
    made = machine_schema() if options.what == "machine" else scenario_schema()
    print(json.dumps(made, indent=2))
    return 0
