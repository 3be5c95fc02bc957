"""``polymmu arches``, ``machines`` and ``scenarios``: what is installed, and which distribution brought it."""

from __future__ import annotations

import argparse
from typing import Any

from polymmu.cli import common

__all__ = ["add", "arches", "machines", "scenarios"]


def add(commands: Any) -> None:
    """Declare the commands."""
    for name, run, help_text in (
        ("arches", arches, "installed architectures"),
        ("machines", machines, "installed machines"),
        ("scenarios", scenarios, "installed scenarios"),
    ):
        parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=__doc__)
        common.add_output(parser)
        parser.set_defaults(run=run)


def arches(options: argparse.Namespace) -> int:
    """List architectures."""
    from polymmu import registry

    rows = [
        {
            "name": row.name,
            "summary": registry.arch_named(row.name).ops.summary(),
            "distribution": row.distribution,
            "version": row.version,
        }
        for row in registry.installed_arches().values()
    ]
    common.emit(options, rows, lambda: table(rows))
    return 0


def machines(options: argparse.Namespace) -> int:
    """List machines."""
    from polymmu.description.load import installed_machines

    rows = [
        {
            "name": row.name,
            "summary": row.summary,
            "arch": row.arch,
            "distribution": row.distribution,
            "version": row.version,
        }
        for row in installed_machines()
    ]
    common.emit(options, rows, lambda: table(rows))
    return 0


def scenarios(options: argparse.Namespace) -> int:
    """List scenarios."""
    from polymmu.description.load_scenario import installed_scenarios

    found = installed_scenarios()
    rows = [
        {"name": row.name, "summary": row.summary, "distribution": row.distribution, "version": row.version}
        for row in found
    ]
    told = [
        {
            **line,
            "corpus": row.corpus,
            "variants": row.variants,
            "arches": row.arches,
            "invariant": row.invariant,
        }
        for line, row in zip(rows, found, strict=True)
    ]
    common.emit(options, told, lambda: table(rows))
    return 0


def table(rows: list[dict[str, str]]) -> str:
    """Rows in columns as wide as needed."""
    if not rows:
        return "(none installed)"
    widths = [max(len(row[key]) for row in rows) for key in rows[0]]
    return "\n".join(
        "  ".join(value.ljust(width) for value, width in zip(row.values(), widths, strict=True)).rstrip()
        for row in rows
    )
