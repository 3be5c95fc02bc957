"""Timelines are what the Trace Event Format says: sorted, nested, paired; and they tell what the schedule did."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import polymmu
from polymmu.cli.main import main
from polymmu.exploration.explorer import Limits
from polymmu.timeline import Timeline

Event = dict[str, Any]


def events_of(path: Path) -> list[Event]:
    """The events of a file, each checked by the rules of the format."""
    told = json.loads(path.read_text())
    assert isinstance(told["traceEvents"], list)
    events: list[Event] = told["traceEvents"]
    for event in events:
        assert event["ph"] in {"M", "B", "E", "b", "e", "i", "s", "f"}
        assert all(isinstance(event[key], int) and event[key] >= 0 for key in ("pid", "tid", "ts"))
        assert event["ph"] == "E" or event["name"]
        assert event["ph"] not in {"b", "e", "s", "f"} or {"id", "cat"} <= set(event)
        assert event["ph"] != "i" or event["s"] in {"g", "p", "t"}
    times = [event["ts"] for event in events]
    assert times == sorted(times)
    nested(events)
    paired(events, "b", "e")
    paired(events, "s", "f")
    named = {(event["pid"], event["tid"]) for event in events if event["ph"] == "M"}
    assert {(event["pid"], event["tid"]) for event in events} == named
    return events


def nested(events: list[Event]) -> None:
    """Each slice ends in its own track, after it began, and none is left open."""
    open_slices = Counter[tuple[int, int]]()
    for event in events:
        track = event["pid"], event["tid"]
        open_slices[track] += {"B": 1, "E": -1}.get(event["ph"], 0)
        assert open_slices[track] >= 0
    assert not +open_slices


def paired(events: list[Event], first: str, second: str) -> None:
    """Every beginning has one end, by category and number, and not before it."""
    begun = {(event["cat"], event["id"]): event["ts"] for event in events if event["ph"] == first}
    ended = {(event["cat"], event["id"]): event["ts"] for event in events if event["ph"] == second}
    assert begun.keys() == ended.keys()
    assert all(begun[key] <= ended[key] for key in begun)
    assert len(begun) == sum(event["ph"] == first for event in events)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, Path]:
    """An exploration in which a flush interrupts another CPU: its JSON, its replay file, its timeline."""
    room = tmp_path_factory.mktemp("timeline")
    told = polymmu.explore(
        "023-last-page-left-out",
        "x86_64",
        variant="buggy",
        replay=room / "found.json",
        timeline=room / "timeline.json",
        limits=Limits(shrink=0),
    ).to_dict()
    return told["violation"], room / "found.json", room / "timeline.json"


def test_a_timeline_keeps_the_rules_of_its_format(found: tuple[dict[str, Any], Path, Path]) -> None:
    told, _, path = found
    events = events_of(path)
    slices = [event["name"] for event in events if event["ph"] == "B"]
    for step in told["steps"]:
        assert step["op"] == "begin" or f"{step['op']} {step['detail']}".strip() in slices
    assert [event["name"] for event in events if event["ph"] == "i"] == [told["invariant"]]


def test_each_lock_has_a_span_from_where_it_was_taken_to_where_it_was_given_back(
    found: tuple[dict[str, Any], Path, Path],
) -> None:
    told, _, path = found
    spans = Counter(event["name"] for event in events_of(path) if event["ph"] == "b")
    taken = Counter(step["detail"] for step in told["steps"] if step["op"] in ("lock", "read_lock"))
    assert {name: n for name, n in spans.items() if name != "interrupts off"} == taken


def test_an_arrow_leads_from_each_interrupt_to_its_handler(
    found: tuple[dict[str, Any], Path, Path],
) -> None:
    told, _, path = found
    events = events_of(path)
    handled = [step["cpu"] for step in told["steps"] if step["op"] == "interrupt"]
    assert handled  # else this shows nothing
    goals = [event["pid"] - 1 for event in events if event["ph"] == "f"]
    assert goals == handled
    for event in events:
        if event["ph"] == "s":
            assert (event["name"], event["pid"] - 1) == ("ipi", 0)


def test_a_replay_gives_the_same_timeline(
    found: tuple[dict[str, Any], Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, replay, path = found
    again = tmp_path / "again.json"
    assert main(["replay", str(replay), "--timeline", str(again)]) == 1
    assert again.read_bytes() == path.read_bytes()
    assert main(["replay", str(replay), "--timeline", str(tmp_path / "nowhere" / "t.json")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_slices_are_sorted_by_time_and_keep_their_order_within_a_moment() -> None:
    timeline = Timeline()
    timeline.begin(1, 0, 20, "late")
    timeline.begin(1, 0, 10, "outer")
    timeline.begin(1, 0, 10, "inner")
    timeline.end(1, 0, 20)
    got = [(event["ts"], event["ph"], event.get("name")) for event in timeline.to_dict()["traceEvents"]]
    assert got == [(10, "B", "outer"), (10, "B", "inner"), (20, "B", "late"), (20, "E", None)]
