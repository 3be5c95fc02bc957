"""What a person gets when a schedule breaks something: words, races, the fixed variant, a short schedule."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import polymmu
from polymmu.cli.main import main
from polymmu.description import installed
from polymmu.description.load_scenario import load_scenario
from polymmu.exploration.explored import Finding
from polymmu.exploration.explorer import Limits, search
from polymmu.exploration.handover import hand_over
from polymmu.exploration.naming import Namer
from polymmu.exploration.scenario import Explored
from polymmu.exploration.schedule import Replay
from polymmu.exploration.shrink import shrink
from polymmu.exploration.witness import watched
from polymmu.mm.tables import find_entry

TABLES = "017-tables-before-unlinking"
"""Two actors: a truncation walks down to a pte table that a munmap frees."""
LIVELOCK = """
scenario: 1
name: livelock
machine: {cpus: 1}
kernel: {truncate: bug-2, i_mmap_lock: spin, zap_block: 1, gather: percpu}
setup:
  - file: {name: f, length: 2p}
  - mm: a
  - mmap: {mm: a, at: 16p, length: 2p, file: f, shared: true}
  - touch: {mm: a, at: 16p, length: 2p}
cpus:
  0: {do: [{truncate: {file: f, length: 0p}}]}
choices: {i_mmap_lock_break: 1}
"""


@pytest.fixture(scope="module")
def broken() -> Callable[[str], dict[str, Any]]:
    """The JSON of a buggy entry on x86_64, explored once."""
    known: dict[str, dict[str, Any]] = {}

    def get(name: str) -> dict[str, Any]:
        if name not in known:
            known[name] = polymmu.explore(name, "x86_64", variant="buggy").to_dict()["violation"]
        return known[name]

    return get


@pytest.fixture(scope="module")
def livelock(tmp_path_factory: pytest.TempPathFactory) -> Finding:
    """A truncation that never ends."""
    path = tmp_path_factory.mktemp("livelock") / "livelock.yaml"
    path.write_text(LIVELOCK)
    return polymmu.explore(path, "x86_64", strategy="fair")


# ------------------------------------------------------------------ words
@pytest.mark.parametrize("arch", ["ia64", "ppc64", "s390", "sparc64", "x86", "x86_64"])
def test_an_entry_is_named_by_its_level_its_address_and_its_mm(arch: str, tmp_path: Path) -> None:
    """What the core's own walk finds for an address at each level is called by that level and covers the address."""
    path = tmp_path / "one.yaml"
    path.write_text(
        "{scenario: 1, name: one, setup: [{mm: a}, {mmap: {mm: a, at: 1pmd+3p, length: 1p}}, "
        "{touch: {mm: a, at: 1pmd+3p, length: 1p}}], cpus: {0: {mm: a, do: [{load: {at: 1pmd+3p}}]}}}"
    )
    program = Explored(arch, load_scenario(str(path)))
    namer = Namer(program.run, program.sanitizer.bench.mms)
    mm = program.run.mms["a"].struct
    layout = mm.layout
    va = layout.span_of(layout.pmd_level) + 3 * layout.page_size
    for level in range(layout.levels):
        first = va & -layout.span_of(level)
        assert namer.of(find_entry(mm, va, level)) == f"{layout.names[level]} of {first:#x} in mm a"
    assert namer.of(mm.mmap_lock) == "mmap_lock of mm a"
    assert namer.of(("tlb", 1)) == "TLB of CPU 1"
    assert namer.of(1) == "0x1"  # no table is there


def test_a_shared_field_is_named_by_whose_it_is(tmp_path: Path) -> None:
    """Under its raw name, by slab and slot, it is an operation; who reads of it wants to know which file that is."""
    path = tmp_path / "one.yaml"
    path.write_text(
        "{scenario: 1, name: one, setup: [{file: {name: f, length: 2p}}, {mm: a}, "
        "{mmap: {mm: a, at: 16p, length: 2p, file: f, shared: true}}, {touch: {mm: a, at: 16p, length: 1p}}, "
        "{mmap: {mm: a, at: 32p, length: 1p}}, {touch: {mm: a, at: 32p, length: 1p, access: store}}], "
        "cpus: {0: {mm: a, do: [{load: {at: 16p}}]}}}"
    )
    program = Explored("x86_64", load_scenario(str(path)))
    namer = Namer(program.run, program.sanitizer.bench.mms)
    mm, mapping = program.run.mms["a"].struct, program.run.files["f"].file.mapping
    mapped, heap = mm.vmas.values()
    pfn = mapping.pages[0]
    named = {
        f"address_space {mapping.slot}.truncate_count": "truncate_count of file f",
        f"address_space {mapping.slot}.host.size": "size of file f",
        f"address_space {mapping.slot}.pages": "pages of file f",
        f"address_space {mapping.slot}.pages[1]": "page 1 of file f",
        f"vm_area_struct {mapped.slot}.vm_truncate_count": f"vm_truncate_count of vma {mapped.slot} at 0x10000 in mm a",
        f"mm_struct {mm.slot}.mm_users": "mm_users of mm a",
        f"mm_struct {mm.slot}.context.tlb_gen": "tlb_gen of mm a's context",
        "arch.cpus[1].loaded": "loaded of CPU 1",
        ("frame", pfn): f"frame {pfn} (page 0 of file f)",
        ("page_lock", pfn): f"page_lock of frame {pfn} (page 0 of file f)",
        ("runs", 1, mm.slot): "whether CPU 1 runs mm a",
        ("zaps", mm.serial): "what TLBs hold of mm a",
        mapping.i_mmap_lock: "i_mmap_lock of file f",
        heap.anon_vma.lock: f"anon_vma_lock of anon_vma {heap.anon_vma.slot}",
        "need_resched": "need_resched",
    }
    assert {what: namer.of(what) for what in named} == named


def test_a_vma_that_was_never_used_has_its_number_alone(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        "{scenario: 1, name: one, setup: [{mm: a}], cpus: {0: {mm: a, do: [{sleep: {cycles: 1}}]}}}"
    )
    program = Explored("x86_64", load_scenario(str(path)))
    assert (
        Namer(program.run, program.sanitizer.bench.mms).of("vm_area_struct 3.vm_truncate_count")
        == "vm_truncate_count of vma 3"
    )


def test_steps_say_whose_entry_it_is_and_of_which_call(broken: Callable[[str], dict[str, Any]]) -> None:
    steps = broken(TABLES)["steps"]
    written = [step["detail"] for step in steps if step["op"] == "write"]
    assert [words for words in written if words.endswith("mm a")] == [
        f"{entry} in mm a" for entry in ("pte of 0x10000", "pmd of 0x0", "pud of 0x0", "pgd of 0x0")
    ]
    assert {step["doing"] for step in steps} == {"", "munmap at 16p length 1p", "truncate file f length 0p"}


def test_a_race_is_told_with_both_places_and_the_locks_held_there(
    broken: Callable[[str], dict[str, Any]],
) -> None:
    """The truncation reads the entry that leads to the table; the munmap clears it: no lock in common."""
    told = broken(TABLES)
    data = [conflict for conflict in told["conflicts"] if conflict["object"] == "pmd of 0x0 in mm a"]
    (conflict,) = data
    one, other = conflict["first"], conflict["second"]
    assert (one["cpu"], one["op"], other["cpu"], other["op"]) == (1, "read", 0, "write")
    assert set(one["locks_held"]) >= {"i_mutex of file f", "i_mmap_lock of file f"}
    assert set(other["locks_held"]) == {"mmap_lock of mm a", "page_table_lock of mm a"}
    assert not set(one["locks_held"]) & set(other["locks_held"])
    assert one["where"].endswith("table_runs")
    for side in (one, other):
        assert told["steps"][side["step"]]["op"] == side["op"]


def test_the_wrong_step_is_marked(broken: Callable[[str], dict[str, Any]]) -> None:
    told = broken(TABLES)
    wrong = told["steps"][told["wrong_step"]]
    assert (wrong["cpu"], wrong["op"], wrong["where"].split()[1]) == (1, "lock", "lock_table")


def test_the_step_that_made_it_possible_is_marked_too(tmp_path: Path) -> None:
    """A walker without locks reads the entry that leads to the table (the cause), then the freed table."""
    path = tmp_path / "walker.yaml"
    path.write_text(
        "{scenario: 1, name: walker, machine: {cpus: 2}, kernel: {table_free: immediate}, setup: [{mm: a}, "
        "{mmap: {mm: a, at: 16p, length: 1p}}, {touch: {mm: a, at: 16p, length: 1p}}], "
        "cpus: {0: {mm: a, do: [{munmap: {at: 16p, length: 1p}}]}, 1: {mm: a, do: [{gup_fast: {at: 16p, may: segv}}]}}}"
    )
    told = polymmu.explore(path, "s390").to_dict()["violation"]
    cause, wrong = (told["steps"][told[which]] for which in ("cause_step", "wrong_step"))
    assert (cause["cpu"], cause["op"], wrong["cpu"], wrong["op"]) == (1, "read", 1, "read")
    assert wrong["detail"] == f"{wrong['detail'].split()[0]} of 0x0 in mm a, a table cut off"
    assert told["cause_step"] < told["wrong_step"]
    assert "interrupts off" in cause["locks_held"]


def test_the_text_has_the_finding_first_and_a_column_for_each_cpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = str(tmp_path / "found.json")
    found = ["explore", TABLES, "--machine", "x86_64", "--variant", "buggy", "--replay", file]
    assert main([*found, "--strategy", "pct", "--seed", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("INV-REF: ")
    assert "shrunk to 1 switch, 0 choices (from " in lines[2]
    assert lines[4].split() == ["CPU", "0", "CPU", "1"]
    (marked,) = [line for line in lines if "<--" in line]
    assert "(lock_table)" in marked
    assert marked.index("lock pte_lock") > 46  # in the second column
    text = "\n".join(lines)
    assert "accesses that conflict" in text
    assert "holds mmap_lock of mm a, page_table_lock of mm a" in text
    assert "would the fixed variant fail here? no: clean on this schedule" in text
    assert f"again: polymmu replay {file}" in text


# ------------------------------------------------------------------ the fixed variant, and as a test
def test_the_same_schedule_is_clean_on_the_fixed_variant(broken: Callable[[str], dict[str, Any]]) -> None:
    told = broken(TABLES)
    assert told["on_fixed"]["verdict"] == "clean"
    assert told["on_fixed"]["followed"] == told["schedule"]["switches"] == 1


def test_a_fixed_variant_that_is_just_as_wrong_is_told_of(tmp_path: Path) -> None:
    text = Path(installed.scenario_files()[TABLES].path).read_text()
    path = tmp_path / "both.yaml"
    path.write_text(text.replace("free_pgtables: vma_list", "free_pgtables: bug-17"))
    found = polymmu.explore(path, "x86_64", variant="buggy")
    assert found.to_dict()["violation"]["on_fixed"]["verdict"] == "violation"
    assert "would the fixed variant fail here? yes: " in str(found)


def test_without_variants_nothing_is_said_of_a_fixed_one(livelock: Finding) -> None:
    assert livelock.to_dict()["violation"]["on_fixed"] is None
    assert "fixed variant" not in str(livelock)


def test_the_test_to_paste_fails_as_long_as_the_bug_is_there(tmp_path: Path) -> None:
    file = str(tmp_path / "found.json")
    told = polymmu.explore(TABLES, "x86_64", variant="buggy", replay=file).to_dict()["violation"]
    scope: dict[str, Any] = {"polymmu": polymmu}
    exec(told["pytest"], scope)
    with pytest.raises(polymmu.PolymmuError, match="INV-REF"):
        scope["test_017_tables_before_unlinking"]()
    data = json.loads(Path(file).read_text())
    Path(file).write_text(json.dumps(data | {"variant": "fixed"}))
    scope["test_017_tables_before_unlinking"]()  # mended: nothing is raised
    with pytest.raises(polymmu.UserMistake, match=r"step \d+: .*the code is not what it was"):
        polymmu.replay(file)


# ------------------------------------------------------------------ short schedules
def test_what_never_ends_is_shown_as_the_steps_that_repeat(livelock: Finding) -> None:
    """A break, and the truncation begins again with the first vma: the same steps for ever."""
    told = livelock.to_dict()["violation"]
    assert told["invariant"] == "INV-PROG"
    begin, period = told["cycle"]["from"], told["cycle"]["steps"]
    steps = [(step["task"], step["op"], step["detail"], step["where"]) for step in told["steps"]]
    assert steps[begin + period :] == steps[begin:-period]
    once = steps[begin : begin + period]
    # No shorter piece makes up the cycle.
    assert all(once != once[:n] * (period // n) for n in range(1, period) if period % n == 0)
    assert f"these {period} steps repeat" in str(livelock)


def test_a_switch_that_only_makes_up_for_another_goes_with_it() -> None:
    """Of the schedule of 5 switches that this seed finds one is needed: to the truncation, in the middle of munmap."""
    program = Explored("x86_64", load_scenario(TABLES), variant="buggy")
    verdict = search(program, "pct", seed=2)
    assert verdict.schedule is not None
    assert verdict.outcome is not None
    assert len(verdict.schedule.turns) > 1
    shrunk = shrink(program, verdict.schedule, verdict.outcome.invariant, 400)
    assert (len(shrunk.schedule.turns), len(shrunk.schedule.values)) == (1, 0)
    assert shrunk == shrink(program, verdict.schedule, verdict.outcome.invariant, 400)


def test_shrinking_keeps_to_its_budget() -> None:
    program = Explored("x86_64", load_scenario(TABLES), variant="buggy")
    verdict = search(program, "pct", seed=2)
    assert verdict.schedule is not None
    shrunk = shrink(program, verdict.schedule, "INV-REF", 5)
    assert shrunk.executions == 5
    assert shrink(program, verdict.schedule, "INV-REF", 0).schedule == verdict.schedule


def interrupt(program: Explored, execution: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C in the middle of the n-th execution from now on, while a task runs."""
    once, left = program.once, [execution]

    def impatient(*args: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            program.sched.in_user_mode = lambda cpu: signal.raise_signal(signal.SIGINT)
        return once(*args, **more)

    monkeypatch.setattr(program, "once", impatient)


@pytest.mark.parametrize(("execution", "budget"), [(1, 400), (2, 400), (20, 400), (1, 0)])
def test_whoever_interrupts_the_shrinking_or_the_telling_still_gets_the_violation(
    execution: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Explored("x86_64", load_scenario(TABLES), variant="buggy")
    verdict = search(program, "pct", seed=2)
    interrupt(program, execution, monkeypatch)
    broken = hand_over(program, verdict, budget)
    assert broken.interrupted
    assert broken.told.outcome.invariant == "INV-REF"
    assert broken.told.steps[broken.told.wrong].function == "lock_table"
    assert broken.on_fixed is None


# ------------------------------------------------------------------ files
def test_a_file_that_is_cut_short_or_altered_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "found.json"
    polymmu.explore(TABLES, "x86_64", variant="buggy", replay=whole, limits=Limits(shrink=0))
    data = whole.read_bytes()
    damaged = tmp_path / "damaged.json"
    cuts = [*range(0, len(data) - 2, max(len(data) // 150, 1)), len(data) - 3]
    for cut in cuts:
        damaged.write_bytes(data[:cut])
        assert main(["replay", str(damaged)]) == 2
    told = json.loads(data)
    wrong: list[Any] = [None, 1, [], {}, "x", [[]], [["a"]], -1, 1e999]
    for key in told:
        for value in wrong:
            if type(value) is type(told[key]) or (key == "variant" and value is None) or key == "finding":
                continue
            damaged.write_text(json.dumps(told | {key: value}))
            assert main(["replay", str(damaged)]) == 2, (key, value)
    for key in told["schedule"]:
        for value in wrong:
            if key != "unbounded" and value != told["schedule"][key]:
                damaged.write_text(json.dumps(told | {"schedule": told["schedule"] | {key: value}}))
                assert main(["replay", str(damaged)]) == 2, (key, value)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("step", [0, 7, -1])
def test_a_step_that_was_altered_is_where_the_replay_diverges(
    step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    polymmu.explore(TABLES, "x86_64", variant="buggy", replay=file, limits=Limits(shrink=0))
    data = json.loads(file.read_text())
    steps = data["schedule"]["steps"]
    for changed in ([0, "nothing", ""], [9, *steps[step][1:]], [*steps[step][:2], "0x1"]):
        altered = [*steps]
        altered[step] = changed
        file.write_text(json.dumps(data | {"schedule": data["schedule"] | {"steps": altered}}))
        assert main(["replay", str(file)]) == 2
        assert f"step {step % len(steps)}: " in capsys.readouterr().err


def test_a_schedule_of_other_versions_is_refused_but_for_a_test(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    polymmu.explore(TABLES, "x86_64", variant="buggy", replay=file, limits=Limits(shrink=0))
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"versions": data["versions"] | {"my-arch": "2"}}))
    with pytest.raises(polymmu.UserMistake, match=r"was made with my-arch 2, here is \(not installed\)"):
        polymmu.replay(file)
    with pytest.raises(polymmu.PolymmuError, match="INV-REF"):
        polymmu.replay(file, strict=False).check()


def test_a_schedule_of_another_invariant_is_no_replay(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    polymmu.explore(TABLES, "x86_64", variant="buggy", replay=file, limits=Limits(shrink=0))
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"invariant": "INV-TLB"}))
    with pytest.raises(polymmu.UserMistake, match=r"broke INV-TLB .* then, INV-REF .* now"):
        polymmu.replay(file)


def test_a_handler_has_its_number_wherever_it_is_replayed() -> None:
    """Tasks are numbered as they turn up, so a handler's number hangs on what was explored before."""
    used = Explored("x86_64", load_scenario("023-last-page-left-out"), variant="buggy")
    search(used, "pct", limits=Limits(random=30))
    fresh = Explored("x86_64", load_scenario("023-last-page-left-out"), variant="buggy")
    fresh.sched.keys = used.sched.keys
    verdict = search(used, "pct")
    assert verdict.schedule is not None
    schedule = watched(used, Replay(verdict.schedule, strict=False)).schedule
    again = Replay(schedule, strict=True)
    watched(fresh, again)
    assert again.diverged == ""
