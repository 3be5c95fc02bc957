"""Parse, dispatch, and turn every failure into one line and an exit status.

0 fine; 1 a finding; 2 the user's mistake, one line, no traceback; 3 our own fault, with traceback; 130
interrupted. Modules of subcommands import what is heavy inside ``run``, so ``--help`` stays quick.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from polymmu.cli import (
    compare,
    conformance,
    explore,
    listings,
    new_arch,
    record,
    replay,
    run,
    schema,
    translate,
    validate,
)
from polymmu.cli.common import tell
from polymmu.errors import PolymmuError, UserMistake

__all__ = ["main"]

COMMANDS = (
    run,
    compare,
    explore,
    replay,
    record,
    translate,
    listings,
    validate,
    schema,
    conformance,
    new_arch,
)
FINE, FINDING, MISTAKE, OUR_FAULT, INTERRUPTED = 0, 1, 2, 3, 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> None:  # type: ignore[override]  # it raises instead of exiting
        raise UserMistake(f"{message}; see '{self.prog} --help'")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Parser(
        prog="polymmu",
        description="Run real programs' memory behaviour on any architecture's MMU, exactly.",
        epilog="Exit status: 0 fine, 1 a finding, 2 your mistake, 3 our fault, 130 interrupted.",
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for module in COMMANDS:
        module.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        return dispatch(list(sys.argv[1:] if argv is None else argv))
    except UserMistake as mistake:
        tell(str(mistake))
        return MISTAKE
    except PolymmuError as finding:
        tell(str(finding))
        return FINDING
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`). Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except (OSError, MemoryError) as error:
        tell(str(error) or type(error).__name__)
        return MISTAKE
    except Exception as error:
        return unexpected(error)


def dispatch(argv: list[str]) -> int:
    """Parse and run; failures are exceptions."""
    options, rest = parser().parse_known_args(argv)
    # argparse gives a list of positionals only those that stand together; addresses may follow options.
    if rest and (not hasattr(options, "addresses") or any(word.startswith("-") for word in rest)):
        raise UserMistake(f"unknown argument {rest[0]!r}; see 'polymmu {options.command or ''} --help'")
    if rest:
        options.addresses = [*options.addresses, *rest]
    if options.version:
        from importlib.metadata import version

        print(f"polymmu {version('polymmu')}")
        return FINE
    if options.command is None:
        parser().print_help()
        return FINE
    status: int = options.run(options)
    return status


def unexpected(error: Exception) -> int:
    """An exception nobody meant to raise: a plugin's if it came out of one of its hooks, else ours."""
    from polymmu import registry

    for arch in registry.loaded_arches():
        mistake = registry.blame(error, arch)
        if mistake is not None and arch.distribution != "polymmu":
            tell(str(mistake))
            return MISTAKE
    traceback.print_exception(error)
    tell("this is a fault of polymmu itself; please report it with the lines above")
    return OUR_FAULT
