"""Make what is made from the code: hook reference, schema, tables of the machine file, reports in pages.

python docs/make.py          writes them
python docs/make.py --check  says which ones are out of date; exit status 1 if any
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import tempfile
import textwrap
from pathlib import Path

from polymmu import Machine, compare, defaults, explore, registry
from polymmu.cli.schema import machine_schema, scenario_schema
from polymmu.hooks import GROUPS, ArchOps
from polymmu.report import compare_text

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

# Beside this file, which is no package.
from generation_tables import with_generations  # noqa: E402
from machine_tables import with_tables  # noqa: E402

REPORT = re.compile(r"(<!-- report: (\S+) (\S+) -->\n).*?(<!-- end of report -->)", re.DOTALL)
"""Where a page shows a report: machine and trace, the report indented between the two comments."""

COMPARISON = re.compile(r"(<!-- compare: (\S+) ([^>]*?) -->\n).*?(<!-- end of comparison -->)", re.DOTALL)
"""Where a page compares: trace and machines."""

EXPLORATION = re.compile(
    r"(<!-- explore: (\S+) (\S+) (\S+) -->\n).*?(<!-- end of exploration -->)", re.DOTALL
)
"""Where a page shows what an exploration finds: scenario, machine, variant."""

PASSING = re.compile(r", \d+\.\d+ s|(?<=\.py):\d+")
"""What changes from one run, or one line of code, to the next."""

HEAD = """\
# Hook reference

Made from the specs in `core/polymmu/hooks.py` by `python docs/make.py`; do not edit.

An architecture plugin is a module whose functions carry `@hookimpl` (from `polymmu.arch`) and these names. It
implements what its machine does differently; `polymmu.defaults` answers the rest. A hook may take fewer
arguments than listed. "Run" means consecutive entries of one table: `ptep` is the physical address of the first,
`n` their number. Levels count from the root (0). Addresses are bytes; `end == 0` as an exclusive end means the top.
"""


def hook_reference() -> str:
    """docs/hooks.md."""
    parts = [HEAD]
    arches = [registry.arch_named(name) for name in registry.installed_arches()]
    mine = [arch for arch in arches if arch.distribution == "polymmu"]
    for group, names in GROUPS.items():
        parts.append(f"\n## {group.capitalize()}\n")
        for name in names:
            function = getattr(ArchOps, name)
            signature = inspect.signature(function)
            shown = ", ".join(f"{p.name}: {p.annotation}" for p in list(signature.parameters.values())[1:])
            doc = textwrap.dedent("    " + inspect.getdoc(function)).strip()  # type: ignore[operator]
            own = [arch.name for arch in mine if name in arch.implementations]
            parts.append(f"### {name}\n")
            parts.append(f"    {name}({shown}) -> {signature.return_annotation}\n")
            parts.append(doc + "\n")
            default = "has a default" if hasattr(defaults, name) else "every architecture must answer"
            parts.append(f"*{default}; implemented by: {', '.join(own) or 'none of ours'}*\n")
    return "\n".join(parts)


def with_reports(page: str) -> str:
    """``page`` with each of its reports made anew."""

    def report(match: re.Match[str]) -> str:
        made = Machine.from_file(match[2]).run(DOCS.parent / match[3])
        return match[1] + "\n" + textwrap.indent(str(made), "    ") + "\n\n" + match[4]

    def comparison(match: re.Match[str]) -> str:
        made = compare_text(compare(DOCS.parent / match[2], match[3].split()))
        return match[1] + "\n" + textwrap.indent(made, "    ") + "\n\n" + match[4]

    return COMPARISON.sub(comparison, REPORT.sub(report, page))


def with_explorations(page: str) -> str:
    """``page`` with each of its explorations made anew."""

    def exploration(match: re.Match[str]) -> str:
        file = f"{match[2]}.replay.json"
        with tempfile.TemporaryDirectory() as room:
            made = str(explore(match[2], match[3], variant=match[4], replay=Path(room) / file))
            made = PASSING.sub("", made.replace(str(Path(room) / file), file))
        return match[1] + "\n" + textwrap.indent(made, "    ") + "\n\n" + match[5]

    return EXPLORATION.sub(exploration, page)


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    machine_files, readme = DOCS / "machine-files.md", DOCS.parent / "README.md"
    exploring = DOCS / "exploring.md"
    comparing, generations = DOCS / "comparing.md", DOCS / "generations.md"
    return {
        comparing: with_reports(comparing.read_text(encoding="utf-8")),
        generations: with_generations(generations.read_text(encoding="utf-8")),
        exploring: with_explorations(exploring.read_text(encoding="utf-8")),
        machine_files: with_tables(machine_files.read_text(encoding="utf-8")),
        readme: with_reports(readme.read_text(encoding="utf-8")),
        DOCS / "hooks.md": hook_reference(),
        DOCS / "schema" / "machine.schema.json": json.dumps(machine_schema(), indent=2) + "\n",
        DOCS / "schema" / "scenario.schema.json": json.dumps(scenario_schema(), indent=2) + "\n",
    }


def main() -> int:
    """Write or check."""
    stale = []
    for path, text in pages().items():
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(str(path))
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path} is out of date; run python docs/make.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
