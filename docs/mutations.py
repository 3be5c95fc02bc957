"""Make docs/mutations.md: which check notices when a hook of ours is broken.

python docs/mutations.py               writes the page; exit status 1 if a breakage went unnoticed
python docs/mutations.py --check       compares it; exit status 1 also if it is out of date
python docs/mutations.py ARCH...       prints the part of these architectures

The example in examples/polymmu-riscv takes part whether it is installed or not. It takes minutes, so it is not part of
docs/make.py; the tests marked slow make the comparison.
"""

from __future__ import annotations

import sys
import tempfile
import tomllib
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from polymmu.conformance.mutations import Row, benches_of, page, rows_of

PAGE = Path(__file__).parent / "mutations.md"

VARIANTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "x86": (("x86.highpte=true",),),
    "x86_64": (),
    "ia64": (),
    "ppc64": (("ppc64.levels=3",),),
    "sparc64": (("sparc64.generation=vpte",), ("sparc64.context_bits=4",)),
    "s390": (),
    "riscv": (("riscv.ad_bits=svadu", "riscv.asid_bits=0", "riscv.remote_fence=ipi"),),
}
"""Settings that matter beside those of the installed machines, for each architecture."""

EXAMPLE = PAGE.parents[1] / "examples" / "polymmu-riscv"


def put_beside(project: Path, scratch: Path) -> None:
    """Let this process find ``project`` as if it were installed; its entry points are written to ``scratch``."""
    described = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if any(
        point.dist and point.dist.name == described["name"] for point in entry_points(group="polymmu.arch")
    ):
        return
    info = scratch / f"{described['name'].replace('-', '_')}-{described['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {described['name']}\nVersion: {described['version']}\n"
    )
    lines = []
    for group, points in described["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    sys.path[:0] = [str(scratch), str(project / "src")]


def rows(arches: Sequence[str]) -> list[Row]:
    """Every row of the table."""
    return [row for arch in arches for row in rows_of(benches_of(arch, ((), *VARIANTS[arch])))]


def main() -> int:
    """Write, check or print."""
    wanted = [word for word in sys.argv[1:] if word != "--check"]
    with tempfile.TemporaryDirectory() as scratch:
        put_beside(EXAMPLE, Path(scratch))
        found = rows(wanted or list(VARIANTS))
    text = page(found)
    stale = False
    if wanted:
        print(text)
    elif "--check" in sys.argv[1:]:
        stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text
    else:
        PAGE.write_text(text, encoding="utf-8")
    survivors = [row for row in found if row.survived]
    for row in survivors:
        print(f"{row.arch}: {row.hook} {row.breakage}: nothing noticed", file=sys.stderr)
    if stale:
        print(f"{PAGE} is out of date; run python docs/mutations.py", file=sys.stderr)
    return 1 if survivors or stale else 0


if __name__ == "__main__":
    sys.exit(main())
