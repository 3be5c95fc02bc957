"""``polymmu translate MACHINE --memory IMAGE [VA...]``: walk page tables in a real memory image."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from polymmu.cli import common
from polymmu.errors import UserMistake

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "translate", help="walk page tables in a memory image", description=__doc__
    )
    parser.add_argument("machine", metavar="MACHINE", help="an installed machine's name, or a YAML file")
    parser.add_argument(
        "--memory", metavar="IMAGE", required=True, help="raw image, ELF core, or sparse .npz"
    )
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a control register by its architecture's name, or NAME=INDEX:WORD:... for an entry of a buffer "
        "(repeatable; default: the image's own)",
    )
    parser.add_argument(
        "--access", choices=("load", "store", "fetch"), default=None, help="ask for this right"
    )
    parser.add_argument("--privilege", choices=("user", "supervisor"), default="supervisor", help="who asks")
    parser.add_argument("--space", metavar="NAME", help="an address space, where there are several")
    parser.add_argument("addresses", metavar="VA", nargs="*", help="virtual addresses (default: from stdin)")
    common.add_sets(parser)
    common.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Translate; exit status 1 if any address faults."""
    from polymmu.api import Machine
    from polymmu.translation import result_json, result_text, translate

    registers = dict(pair for item in options.register for pair in register(item))
    words = options.addresses or sys.stdin.read().split()
    addresses = [number(word, "address") for word in words]
    machine = Machine.from_file(options.machine, sets=common.sets_of(options))
    results = translate(
        machine,
        addresses,
        options.memory,
        registers,
        options.access,
        options.privilege,
        options.space,
    )
    value = result_json(machine.name, results)
    common.emit(options, value, lambda: result_text(results))
    return 1 if any(result.fault is not None for result in results) else 0


def register(item: str) -> list[tuple[str, int]]:
    """``cr3=0x1000`` -> cr3: 4096. ``slb=2:A:B``, the words of entry 2 of a buffer -> slb.2.0: A, slb.2.1: B."""
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise UserMistake(f"'{item}' is not NAME=VALUE", place="--register")
    name, (index, *words) = name.lower(), value.split(":")
    if not words:
        return [(name, number(value, f"register {name}"))]
    entry = f"{name}.{number(index, f'index of {name}')}"
    return [(f"{entry}.{n}", number(word, f"register {entry}")) for n, word in enumerate(words)]


def number(word: str, what: str) -> int:
    """A non-negative number below 2**64, decimal or with 0x."""
    try:
        value = int(word, 0)
    except ValueError:
        raise UserMistake(f"{what} '{word}' is not a number; write it with 0x or in decimal") from None
    if not 0 <= value < 1 << 64:
        raise UserMistake(f"{what} {word} is outside 0..2**64-1")
    return value
