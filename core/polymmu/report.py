"""What a run amounted to: counters and observers' results as one nested value.

``Counters`` listens to events and adds them up; ``Report`` holds the finished nested value in the shape of
``polymmu run --format json``. Text, JSON and rows with dotted paths are all made from that one value, so a
figure has one name everywhere. List items are named by their ``name`` field, with ``@cpu`` for one CPU's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from polymmu.events import Observer

__all__ = ["Counters", "Report", "compare_dict", "compare_text", "figures"]

SCHEMA = 1
RELOCATIONS_SHOWN = 4


class Counters(Observer):
    """Adds up what the mm core did. Plain attributes; ``sections`` gives the report's share of them."""

    def __init__(self, level_names: tuple[str, ...]) -> None:
        self.faults = {"minor": 0, "cow": 0, "protection": 0, "segv": 0}
        self.levels = {name: {"allocated": 0, "freed": 0, "live": 0, "peak": 0} for name in level_names}
        self.tables = {"allocated": 0, "freed": 0, "live": 0, "peak": 0, "bytes_peak": 0}
        self.table_bytes = 0
        self.pages = {"allocated": 0, "freed": 0, "peak": 0}
        self.live_pages = 0
        self.gather = {"flushes": 0, "pages": 0, "tables": 0, "batches": 0, "batch_fallbacks": 0}
        self.shootdowns = {"ipis": 0, "local": 0, "broadcast": 0}
        self.visited: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def mm_call_begin(self, mm: Any, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def fault(self, mm: Any, addr: int, kind: str, n: int) -> None:
        self.faults[kind] = self.faults.get(kind, 0) + n

    def pages_allocated(self, n: int, what: str) -> None:
        self.pages["allocated"] += n
        self.live_pages += n
        self.pages["peak"] = max(self.pages["peak"], self.live_pages)

    def pages_freed(self, n: int) -> None:
        self.pages["freed"] += n
        self.live_pages -= n

    def table_allocated(self, mm: Any, level: int, table: int, size: int) -> None:
        for each in (self.levels[mm.layout.names[level]], self.tables):
            each["allocated"] += 1
            each["live"] += 1
            each["peak"] = max(each["peak"], each["live"])
        self.table_bytes += size
        self.tables["bytes_peak"] = max(self.tables["bytes_peak"], self.table_bytes)

    def table_freed(self, mm: Any, level: int, table: int, size: int) -> None:
        for each in (self.levels[mm.layout.names[level]], self.tables):
            each["freed"] += 1
            each["live"] -= 1
        self.table_bytes -= size

    def gather_flush(self, mm: Any, pages: int, tables: int) -> None:
        self.gather["flushes"] += 1
        self.gather["pages"] += pages
        self.gather["tables"] += tables

    def gather_batch(self, mm: Any, got: bool) -> None:
        self.gather["batches" if got else "batch_fallbacks"] += 1

    def shootdown(self, mm: Any, kind: str, cpus: int) -> None:
        if kind == "ipi":
            self.shootdowns["ipis"] += cpus
        else:
            self.shootdowns[kind] += 1

    def entries_visited(self, mm: Any, what: str, n: int) -> None:
        self.visited[what] = self.visited.get(what, 0) + n

    def sections(self) -> dict[str, Any]:
        """The sections of a report that come from counting events."""
        return {
            "faults": dict(self.faults),
            "tables": {**self.tables, "levels": {name: dict(each) for name, each in self.levels.items()}},
            "pages": dict(self.pages),
            "gather": dict(self.gather),
            "shootdown": dict(self.shootdowns),
            "mm_calls": dict(sorted(self.calls.items())),
            "entries_visited": dict(sorted(self.visited.items())),
        }


def figures(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a report as (dotted path, value).

    Items of a list of mappings are named by ``name``; the same name on several CPUs is summed, and each CPU's
    own is ``name@cpu``.
    """
    for key, item in value.items():
        path = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from figures(item, path + ".")
        elif isinstance(item, list) and item and isinstance(item[0], Mapping) and "name" in item[0]:
            yield from _named(item, path)
        elif not isinstance(item, list):
            yield path, item


LABELS = ("name", "cpu", "level")
"""What tells the items of a list of figures apart; all else is counted."""


def _named(items: list[Mapping[str, Any]], path: str) -> Iterator[tuple[str, Any]]:
    names = list(dict.fromkeys(item["name"] for item in items))
    for name in names:
        same = [item for item in items if item["name"] == name]
        for field in same[0]:
            if field in LABELS:
                continue
            yield f"{path}.{name}.{field}", sum(item[field] for item in same)
            if len(same) > 1:
                for item in same:
                    yield f"{path}.{name}@{item['cpu']}.{field}", item[field]


@attrs.frozen(eq=False)
class Report:
    """One run's result. ``value`` is exactly the JSON."""

    value: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return self.value

    def to_json(self) -> str:
        """The JSON text, stable byte for byte."""
        return json.dumps(self.value, indent=2)

    def rows(self) -> list[dict[str, Any]]:
        """One row of dotted paths, for ``pandas.DataFrame``."""
        return [dict(figures(self.value))]

    def __str__(self) -> str:
        return text_of(self.value)


def compare_dict(reports: Iterable[Report]) -> dict[str, Any]:
    """The JSON of ``polymmu compare``."""
    return {"schema": SCHEMA, "runs": [report.value for report in reports]}


WALK_FIGURES = ("count", "references", "cache_hits", "ad_updates")
"""What every MMU counts; anything else under ``walk`` are events of one MMU's own."""


# ------------------------------------------------------------------------ text
def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3f} %" if whole else "-"


def text_of(value: Mapping[str, Any]) -> str:
    """A report for a terminal, 100 columns at most."""
    lines = [
        f"{value['machine']} ({value['arch']}), {value['workload'] or 'no workload'}, {value['driver']} driver"
    ]
    accesses = value["accesses"]
    lines.append("")
    lines.append(
        f"accesses   {accesses['total']:>15,}   fetch {accesses['fetch']:,}   load {accesses['load']:,}   "
        f"store {accesses['store']:,}"
    )
    lines.append(f"cycles     {value['cycles']:>15,}   {_per(value['cycles'], accesses['total'])} per access")
    if "elapsed" in value:
        lines.append(f"elapsed    {value['elapsed']:>15,}   cycles until the last CPU was done")
    if value["tlb"]:
        lines += [
            "",
            f"{'TLB':<11}{'hits':>15}{'misses':>13}{'miss rate':>11}{'compulsory':>12}{'evicted':>11}{'flushed':>10}",
        ]
        for tlb in _summed(value["tlb"]):
            looked = tlb["hits"] + tlb["misses"]
            lines.append(
                f"{tlb['name']:<11}{tlb['hits']:>15,}{tlb['misses']:>13,}{percent(tlb['misses'], looked):>11}"
                f"{tlb['compulsory']:>12,}{tlb['evictions']:>11,}{tlb['flushed']:>10,}"
            )
    walk = value["walk"]
    lines += [
        "",
        f"walks      {walk['count']:>15,}   {walk['references']:,} table references "
        f"({_per(walk['references'], walk['count'])} per walk), {walk['cache_hits']:,} began in a walk cache",
    ]
    events = {name: n for name, n in walk.items() if name not in WALK_FIGURES}
    if events:
        lines.append(f"{'':29}" + "   ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in events.items()))
    faults = value["faults"]
    lines.append(
        f"faults     {sum(faults.values()):>15,}   " + "   ".join(f"{k} {n:,}" for k, n in faults.items())
    )
    tables = value["tables"]
    levels = "   ".join(f"{name} {each['peak']:,}" for name, each in tables.get("levels", {}).items())
    lines.append(
        f"tables     {tables['peak']:>15,}   at peak ({tables['bytes_peak']:,} bytes): {levels}; "
        f"{tables['live']:,} live at the end"
    )
    pages = value["pages"]
    lines.append(
        f"pages      {pages['peak']:>15,}   at peak; {pages['allocated']:,} allocated, {pages['freed']:,} freed"
    )
    if "swap" in value:
        swap = value["swap"]
        lines.append(
            f"swap       {swap['out']:>15,}   pages out, {swap['in']:,} in; {swap['used']:,} of {swap['slots']:,} "
            "places taken at the end"
        )
    gather = value["gather"]
    lines.append(
        f"gather     {gather['flushes']:>15,}   flushes, {gather['pages']:,} pages and {gather['tables']:,} tables "
        f"freed through it, {gather['batches']:,} batch pages"
    )
    lines.append(_flush_lines(value["flushes"]))
    if "elapsed" in value:
        lines += _latency_lines(value["shootdown"], value["latency"])
    calls = value.get("mm_calls")
    if calls:
        lines.append(
            f"mm calls   {sum(calls.values()):>15,}   " + "   ".join(f"{k} {n:,}" for k, n in calls.items())
        )
    if value.get("relocated"):
        lines.append(
            f"relocated  {len(value['relocated']):>15,}   mappings that did not fit this machine's addresses"
        )
        lines += [
            f"{'':29}{m['start']}-{m['end']} -> {m['target']}" for m in value["relocated"][:RELOCATIONS_SHOWN]
        ]
        if len(value["relocated"]) > RELOCATIONS_SHOWN:
            lines.append(
                f"{'':29}... and {len(value['relocated']) - RELOCATIONS_SHOWN} more (--format json has all)"
            )
    if value.get("self_mapped_pages"):
        lines.append(
            f"self-mapped{value['self_mapped_pages']:>15,}   pages touched outside every recorded mapping"
        )
    if value.get("small_for_huge"):
        lines.append(
            f"small pages{value['small_for_huge']:>15,}   mappings of huge pages of a size this machine has not got"
        )
    refused = value.get("calls", {}).get("refused")
    if refused:
        lines.append(
            f"refused    {len(refused):>15,}   recorded calls; the first: {refused[0]['call']}: {refused[0]['reason']}"
        )
    if "scenario" in value:
        told = value["scenario"]
        lines.append(
            f"steps      {told['steps']:>15,}   of the scenario; {told['refused_accesses']:,} accesses were refused, "
            "as they may be"
        )
    lines += [f"violation  {each['invariant']}: {each['message']}" for each in value["violations"]]
    if "finding" in value:
        lines.append(f"finding    {value['finding']}")
    if value.get("partial"):
        lines.append("partial    interrupted: the figures cover what ran until then")
    return "\n".join(lines)


def _latency_lines(shootdown: Mapping[str, int], latency: Mapping[str, Any]) -> list[str]:
    """What matters where CPUs run at once: who interrupts whom, and who waits how long."""
    told = "   ".join(f"{kind} {n:,}" for kind, n in shootdown.items())
    lines = [f"shootdowns {sum(shootdown.values()):>15,}   {told}"]
    lines += [
        f"{'longest':<11}{hold:>15,}   cycles {name} was held; {latency['max_lock_wait'].get(name, 0):,} waited for it"
        for name, hold in latency["max_lock_hold"].items()
    ]
    lines += [
        f"{'longest':<11}{wait:>15,}   cycles somebody waited for {name}"
        for name, wait in latency["max_lock_wait"].items()
        if name not in latency["max_lock_hold"]
    ]
    lines.append(f"{'longest':<11}{latency['max_preempt_off']:>15,}   cycles with preemption off")
    return lines


def _per(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else "-"


def _summed(tlbs: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    total: dict[str, dict[str, Any]] = {}
    for tlb in tlbs:
        into = total.setdefault(tlb["name"], {"name": tlb["name"]})
        for key, n in tlb.items():
            if key not in LABELS:
                into[key] = into.get(key, 0) + n
    return list(total.values())


def _flush_lines(flushes: Mapping[str, Any]) -> str:
    def row(name: str, each: Mapping[str, int]) -> str:
        return (
            f"{name:<11}{each['issued']:>15,}   issued, {each['needed']:,} needed, "
            f"{each['redundant']:,} redundant, {each['missing']:,} missing"
        )

    lines = [row("flushes", flushes)]
    lines += [row(f"  {name}", each) for name, each in flushes["by_call"].items()]
    return "\n".join(lines)


ROWS: tuple[tuple[str, str], ...] = (
    ("page size", "page_size"),
    ("accesses", "accesses.total"),
    ("cycles", "cycles"),
    ("walks", "walk.count"),
    ("walk references", "walk.references"),
    ("walk cache hits", "walk.cache_hits"),
    ("minor faults", "faults.minor"),
    ("cow faults", "faults.cow"),
    ("protection faults", "faults.protection"),
    ("segv", "faults.segv"),
    ("table pages, peak", "tables.peak"),
    ("table bytes, peak", "tables.bytes_peak"),
    ("pages, peak", "pages.peak"),
    ("gather flushes", "gather.flushes"),
    ("pages gathered", "gather.pages"),
    ("flushes issued", "flushes.issued"),
    ("flushes needed", "flushes.needed"),
    ("flushes redundant", "flushes.redundant"),
    ("flushes missing", "flushes.missing"),
    ("relocated mappings", "relocated_mappings"),
    ("self-mapped pages", "self_mapped_pages"),
)


def _by_level(tlbs: list[Mapping[str, Any]]) -> dict[str, int]:
    """Hits and misses of all TLBs of a level together, as figures beside those of each."""
    total: dict[str, int] = {}
    for tlb in tlbs:
        for figure in ("hits", "misses"):
            path = f"tlb.level {tlb['level']}.{figure}"
            total[path] = total.get(path, 0) + tlb[figure]
    return total


def _unique(lists: Iterable[Iterable[str]]) -> list[str]:
    """Every name once, in the order of first appearance."""
    return list(dict.fromkeys(name for names in lists for name in names))


def compare_text(reports: Sequence[Report]) -> str:
    """The table of ``polymmu compare``: a column per machine."""
    columns = [{**report.rows()[0], **_by_level(report.value["tlb"])} for report in reports]
    values = [report.value for report in reports]
    rows = [("machine", [str(c["machine"]) for c in columns]), ("arch", [str(c["arch"]) for c in columns])]
    table_rows = [*ROWS[:3]]
    shown = [[tlb["name"] for tlb in value["tlb"]] for value in values]
    if any(sorted(set(names)) != sorted(set(shown[0])) for names in shown):
        # Machines whose TLBs are not the same ones are compared level by level.
        shown = [[f"level {tlb['level']}" for tlb in value["tlb"]] for value in values]
    for name in _unique(shown):
        table_rows += [(f"{name} hits", f"tlb.{name}.hits"), (f"{name} misses", f"tlb.{name}.misses")]
    table_rows += ROWS[3:6]
    for name in _unique([list(value["walk"]) for value in values]):
        if name not in WALK_FIGURES:
            table_rows.append((name.replace("_", " "), f"walk.{name}"))
    table_rows += ROWS[6:]
    for label, path in table_rows:
        rows.append((label, [f"{c[path]:,}" if path in c else "-" for c in columns]))
    left = max(len(label) for label, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(columns))]
    return "\n".join(
        label.ljust(left)
        + "".join("  " + cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        for label, cells in rows
    )
