"""``polymmu new-arch NAME DIR``: a distribution of its own for a new architecture, ready to install and to test.

What is written is the tree ``skeleton`` beside this file: ``NAME`` in paths and ``$name`` in texts replaced, ``.in``
taken off. It holds a plain radix MMU that passes the conformance kit as it stands; its author edits it from there
(``docs/new-arch.md``).
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path
from string import Template
from typing import Any

from polymmu.errors import UserMistake

__all__ = ["add", "run", "write"]

SKELETON = Path(__file__).with_name("skeleton")
NAME = r"(?=.{1,31}$)[a-z][a-z0-9]*(_[a-z0-9]+)*"
YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "new-arch",
        help="write a new architecture's distribution, ready to test",
        description="Write a distribution for a new architecture: plugin, machine file, tests, packaging.",
    )
    parser.add_argument("name", metavar="NAME", help="of the architecture: small letters, digits and _")
    parser.add_argument("directory", metavar="DIR", type=Path, help="where to; must be empty or not exist")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check, write, and say what to do next."""
    files = write(options.name, options.directory)
    where = options.directory
    print(f"{where}: {len(files)} files for architecture '{options.name}'; try it:")
    print(f"    pip install -e '{where}[test]' && pytest {where}")
    return 0


def write(name: str, directory: Path) -> list[Path]:
    """Write the skeleton for ``name`` into ``directory``; the files, sorted. Raises UserMistake."""
    check_name(name)
    check_directory(directory)
    from importlib.metadata import version

    words = {"name": name, "dashed": name.replace("_", "-"), "version": version("polymmu")}
    files = []
    for source in sorted(path for path in SKELETON.rglob("*.in") if path.is_file()):
        place = str(source.relative_to(SKELETON)).removesuffix(".in").replace("NAME", name)
        target = directory / place.replace("gitignore", ".gitignore")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(source.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
        files.append(target)
    return files


def check_name(name: str) -> None:
    """Refuse what is no name, and what is taken: by an architecture, a machine, or a package."""
    import attrs

    from polymmu import registry
    from polymmu.description.installed import machine_files
    from polymmu.description.model import MachineDescription

    if not re.fullmatch(NAME, name):
        raise UserMistake(
            f"'{name}' cannot name an architecture; use at most 31 small letters, digits and single _, a letter first"
        )
    # The name is also the key of a section in machine files.
    if name in YAML_WORDS or name in attrs.fields_dict(MachineDescription) or name == "extends":
        raise UserMistake(f"'{name}' is a word of machine files; choose another name")
    taken = registry.installed_arches().get(name)
    if taken is not None:
        raise UserMistake(
            f"architecture '{name}' is installed already, by {taken.distribution}; choose another name"
        )
    machine = machine_files().get(name)
    if machine is not None:
        raise UserMistake(
            f"a machine '{name}' is installed already, by {machine.distribution}; choose another name"
        )
    for package in (f"polymmu_{name}", f"polymmu_{name}_machines"):
        if importlib.util.find_spec(package) is not None:
            raise UserMistake(f"a package '{package}' is installed already; choose another name")


def check_directory(directory: Path) -> None:
    """Refuse to write where something is."""
    if directory.is_dir():
        if any(directory.iterdir()):
            raise UserMistake("the directory is not empty; name a new one", place=str(directory))
    elif directory.exists() or directory.is_symlink():
        raise UserMistake("this is not a directory; name a new one", place=str(directory))
