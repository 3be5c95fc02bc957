"""Scenario files: what they may say, what is told about mistakes, and what running them comes to."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from polymmu import Machine, plugins
from polymmu.cli.main import main
from polymmu.cli.schema import scenario_schema
from polymmu.description.load_scenario import load_scenario, load_scenario_text
from polymmu.description.scenario import bytes_of
from polymmu.errors import UserMistake

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "polymmu_scenarios").glob("*.yaml"))
MACHINES = ("ia64", "ppc64", "ppc64-64k", "s390", "s390-31", "sparc64", "x86", "x86-pae", "x86_64")

PLACES = [
    (path, name)
    for path in SHIPPED
    for name in (
        (load_scenario(str(path)).scenario.arches or ("x86_64",))[-1:] if path.stem[0].isdigit() else MACHINES
    )
]
"""The gallery's entries are explored on every architecture (``tests.explore.test_gallery``)."""

PLAIN = """\
scenario: 1
name: plain
machine: {cpus: 2}
setup:
  - mm: a
  - mmap: {mm: a, at: 16p, length: 4p}
cpus:
  0:
    mm: a
    do:
      - touch: {at: 16p, length: 4p}
  1:
    mm: a
    do:
      - load: {at: 17p}
"""


def run(text: str, name: str = "x86_64", **more: Any) -> dict[str, Any]:
    file = load_scenario_text(textwrap.dedent(text), filename="s.yaml")
    return Machine.to_run(name, file, **more).run(file).to_dict()


def doing(*steps: str, setup: str = "", cpu: str = "0", head: str = "") -> str:
    """PLAIN's machine and mm, and one task that does ``steps``."""
    lines = "".join(f"      - {step}\n" for step in steps)
    top, _, _ = PLAIN.partition("cpus:\n")
    return f"{head}{top}{setup}cpus:\n  {cpu}:\n    mm: a\n    do:\n{lines}"


def mistake(text: str) -> str:
    with pytest.raises(UserMistake) as caught:
        load_scenario_text(text, filename="s.yaml")
    return str(caught.value)


# ------------------------------------------------------------------ what a file may say
def test_places_are_told_in_pages_and_in_what_a_pmd_entry_covers() -> None:
    assert bytes_of("16p", 4096, 2 << 20) == 65536
    assert bytes_of("1pmd", 4096, 2 << 20) == 2 << 20
    assert bytes_of("2pmd+3p", 8192, 8 << 20) == (16 << 20) + 24576


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            ("{at: 17p}", "{at: 17}"),
            "s.yaml:15:20: cpus.1.do.load.at: '17' is not text to YAML; write \"17\"",
        ),
        (
            ("{at: 17p}", "{at: 17 pages}"),
            "s.yaml:15:20: cpus.1.do.load.at: '17 pages' is not a number of pages",
        ),
        (("load:", "laod:"), "s.yaml:15:9: cpus.1.do: unknown key 'laod'"),
        (("- load: {at: 17p}", "- {load: {at: 17p}, store: {at: 17p}}"), "found load and store"),
        (("- load: {at: 17p}", "- mm: b"), "cpus.1.do: 'mm' belongs to the setup"),
        (("  1:\n    mm: a", "  1:\n    mm: b"), "cpus.1.mm: no setup step makes an mm 'b'"),
        (("  1:\n", "  one:\n"), "s.yaml:12:3: cpus: 'one' is not a CPU's number"),
        (("name: plain\n", ""), "s.yaml:1:1: missing 'name'"),
        (("{cpus: 2}", "2"), "s.yaml:3:10: machine: expected a mapping to lay over the machine"),
        (
            ("{at: 17p}", "{at: 17p, may: sigv}"),
            "unknown choice 'sigv' (known: , segv); did you mean 'segv'?",
        ),
    ],
)
def test_a_mistake_is_told_where_it_stands(change: tuple[str, str], told: str) -> None:
    text = PLAIN.replace(*change)
    assert text != PLAIN
    assert told in mistake(text)
    assert "\n" not in mistake(text)


def test_a_misspelt_verb_is_met_with_the_right_one() -> None:
    assert "did you mean 'munmap'?" in mistake(PLAIN.replace("load:", "munmp:"))


def test_a_mistake_about_the_machine_is_told_where_the_scenario_wrote_it() -> None:
    text = PLAIN.replace("{cpus: 2}", "{cpus: 2, tlbz: 3}")
    with pytest.raises(UserMistake, match=r"^s\.yaml:3:20: unknown key 'tlbz'.*did you mean 'tlbs'"):
        run(text)
    with pytest.raises(UserMistake, match=r"^s\.yaml:3:28: kernel: unknown key 'gather_bach'"):
        run(PLAIN.replace("machine: {cpus: 2}", "kernel: {gather_batch: 16, gather_bach: 8}"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            PLAIN.replace("machine: {cpus: 2}\n", ""),
            "s.yaml: cpus.1: the machine has 1 CPUs; write 'machine: {cpus: 2}'",
        ),
        (
            doing("munmap: {mm: b, at: 16p, length: 1p}"),
            "s.yaml: cpus.0.do[0]: munmap: unknown mm 'b' (known: a)",
        ),
        (
            doing("truncate: {file: f, length: 0p}"),
            "s.yaml: cpus.0.do[0]: truncate: unknown file 'f' (known: none)",
        ),
        (doing("exit: {}", "load: {at: 16p}"), "do[1]: load: this task has no address space of its own"),
        (doing("fork: {child: a}"), "do[0]: fork: there is an mm 'a' already"),
    ],
)
def test_a_step_that_makes_no_sense_is_a_users_mistake(text: str, told: str) -> None:
    with pytest.raises(UserMistake) as caught:
        run(text)
    assert told in str(caught.value)


# ------------------------------------------------------------------ what running one comes to
def test_a_scenario_reports_its_steps_and_leaves_nothing() -> None:
    told = run(PLAIN)
    assert told["driver"] == "timed"
    assert told["workload"] == "plain"
    assert told["scenario"] == {"steps": 4, "refused_accesses": 0}
    assert told["accesses"] == {"total": 5, "fetch": 0, "load": 1, "store": 4}
    assert told["tables"]["live"] == 0
    assert told["pages"]["allocated"] == told["pages"]["freed"]
    assert told["violations"] == []
    assert "finding" not in told


def test_machine_and_kernel_are_laid_over_the_machine_and_set_over_them() -> None:
    file = load_scenario_text(
        PLAIN.replace("{cpus: 2}", "{cpus: 3, memory: 64 MiB}\nkernel: {zap_block: 8}"), filename="s"
    )
    machine = Machine.to_run("x86_64", file, sets=["cpus=4"])
    described = machine.description
    assert (described.cpus, described.memory, described.kernel.zap_block) == (4, 64 << 20, 8)


def test_an_access_that_is_refused_is_a_finding_unless_it_may_be() -> None:
    told = run(doing("load: {at: 40p}"))
    assert told["finding"].startswith("cpus.0.do[0]: segmentation fault: load at 0x28000")
    told = run(doing("load: {at: 40p, may: segv}"))
    assert told["scenario"]["refused_accesses"] == 1
    assert "finding" not in told


def test_a_call_that_is_refused_is_a_finding() -> None:
    told = run(doing("mremap: {at: 16p, length: 4p, new_length: 5p, to: 17p}"))
    assert told["finding"].startswith("cpus.0.do[0]: mremap: ")


def test_an_mm_goes_down_with_its_last_task() -> None:
    """Two tasks of one mm: one exit, on the CPU of the task that ends last."""
    told = run(PLAIN)
    assert told["mm_calls"]["exit"] == 1


def test_a_task_that_exits_goes_on_without_an_mm() -> None:
    told = run(doing("store: {at: 16p}", "exit: {}", "work: {cycles: 100}"))
    assert told["mm_calls"]["exit"] == 1
    assert told["scenario"]["steps"] == 5


def test_a_forked_child_is_visited_and_ended() -> None:
    steps = (
        "store: {at: 16p}",
        "fork: {child: b}",
        "store: {mm: b, at: 16p}",
        "store: {mm: a, at: 16p}",
        "exit: {mm: b}",
    )
    told = run(doing(*steps))
    assert told["faults"]["cow"] == 1
    assert told["mm_calls"] == {"exit": 2, "fork": 1, "mmap": 1}
    assert "finding" not in told


def test_several_tasks_share_a_cpu() -> None:
    """Task 0 sleeps while 0b works: both are done in little more than the longer one takes."""
    text = PLAIN.partition("cpus:\n")[0] + textwrap.dedent("""\
        cpus:
          0: {mm: a, do: [sleep: {cycles: 50000}]}
          0b: {do: [work: {cycles: 40000}]}
        """)
    assert 50_000 <= run(text)["elapsed"] < 60_000


def test_times_repeats_what_a_task_does() -> None:
    told = run(PLAIN.replace("      - load: {at: 17p}\n", "      - load: {at: 17p}\n    times: 7\n"))
    assert told["accesses"]["load"] == 7


def test_truncate_takes_the_pages_of_a_file_away() -> None:
    setup = "  - file: {name: f, length: 4p}\n  - mmap: {mm: a, at: 32p, length: 4p, file: f, shared: true}\n"
    told = run(
        doing(
            "store: {at: 35p}", "truncate: {file: f, length: 2p}", "load: {at: 35p, may: segv}", setup=setup
        )
    )
    assert told["scenario"]["refused_accesses"] == 1
    assert "finding" not in told


@pytest.mark.parametrize(("path", "name"), PLACES, ids=lambda value: getattr(value, "stem", value))
def test_every_shipped_scenario_is_clean_on_every_architecture(path: Path, name: str) -> None:
    file = load_scenario_text(path.read_text(), filename=path.name)
    assert file.scenario.name == path.stem
    told = Machine.to_run(name, file, sets=["memory=256 MiB"]).run(file).to_dict()
    assert "finding" not in told
    assert told["violations"] == []
    assert told["flushes"]["missing"] == 0


def test_two_runs_are_alike_to_the_byte_and_other_seeds_are_not() -> None:
    text = SHIPPED[-1].read_text()
    file = load_scenario_text(text, filename="s.yaml")

    def told(seed: int) -> str:
        return Machine.to_run("x86_64", file, sets=[f"seed={seed}"]).run(file).to_json()

    assert told(0) == told(0)
    assert len({json.loads(told(seed))["elapsed"] for seed in range(4)}) > 1


# ------------------------------------------------------------------ schema and command line
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_fit_the_schema(path: Path) -> None:
    def with_names(value: Any) -> Any:
        """JSON has no keys but strings."""
        if isinstance(value, Mapping):
            return {str(key): with_names(below) for key, below in value.items()}
        return [with_names(item) for item in value] if isinstance(value, list) else value

    value = with_names(yaml.safe_load(path.read_text()))
    schema = scenario_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(value, schema)
    value["cpus"]["0"]["do"].append({"laod": {"at": "1p"}})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, schema)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped scenarios as an installed distribution brings them."""
    point = EntryPoint("polymmu", "polymmu_scenarios", "polymmu.scenarios")
    others = metadata.entry_points
    monkeypatch.setattr(
        plugins,
        "entry_points",
        lambda group: [point] if group == "polymmu.scenarios" else others(group=group),
    )


def test_scenarios_lists_what_is_installed(installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenarios", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [path.stem for path in SHIPPED]
    assert all(row["summary"] for row in rows)


def test_run_takes_a_scenario_by_name_or_path(installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "x86", SHIPPED[0].stem, "--format", "json", "--seed", "3"]) == 0
    by_name = json.loads(capsys.readouterr().out)
    assert main(["run", "x86", str(SHIPPED[0]), "--format", "json", "--seed", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == by_name
    assert by_name["provenance"]["set"] == ["seed=3"]


def test_run_gives_1_for_a_finding_and_2_for_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(doing("load: {at: 40p}"))
    assert main(["run", "x86_64", str(path)]) == 1
    assert "finding    cpus.0.do[0]: segmentation fault: load" in capsys.readouterr().out
    assert main(["run", "x86_64", str(path), "--driver", "solo"]) == 2
    assert "needs the timed driver" in capsys.readouterr().err
    path.write_text(PLAIN.replace("load:", "laod:"))
    assert main(["run", "x86_64", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"polymmu: {path}:15:9: cpus.1.do: unknown key 'laod'")


def test_validate_knows_machines_from_scenarios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(PLAIN)
    bad.write_text(PLAIN.replace("load:", "laod:"))
    assert main(["validate", str(good), str(bad)]) == 2
    captured = capsys.readouterr()
    assert captured.out == f"{good}: fine\n"
    assert f"{bad}:15:9: " in captured.err


# ------------------------------------------------------------------ huge pages, the heap, pages that come and go
def test_a_step_maps_huge_pages() -> None:
    text = doing(
        "mmap: {at: 4pmd, length: 2pmd, huge: 2 MiB}",
        "touch: {at: 4pmd, length: 1p}",
        "load: {at: 6pmd, may: segv}",
    )
    report = run(text)
    assert "finding" not in report
    assert report["faults"]["minor"] == 1
    assert report["pages"]["peak"] >= 512


def test_the_heap_grows_and_shrinks() -> None:
    report = run(doing("brk: {length: 4p}", "brk: {length: 1p}", "brk: {length: 0p}"))
    assert "finding" not in report
    assert report["mm_calls"]["brk"] == 3


def test_a_step_swaps_out_what_a_later_one_brings_back() -> None:
    head = "machine: {cpus: 1, swap: 16 MiB}\n"
    text = doing(
        "touch: {at: 16p, length: 4p}", "swap_out: {at: 16p, length: 4p}", "touch: {at: 17p, length: 2p}"
    ).replace("machine: {cpus: 2}\n", head)
    assert run(text)["swap"] == {"out": 4, "in": 2, "slots": 4095, "used": 0}


def test_a_step_reclaims_from_a_kernel_thread() -> None:
    text = doing("touch: {at: 16p, length: 4p}", "sleep: {cycles: 3000000}")
    text = text.replace("machine: {cpus: 2}", "machine: {cpus: 1, swap: 16 MiB}")
    text += "  0b:\n    do:\n      - sleep: {cycles: 500000}\n      - reclaim: {pages: 2}\n"
    report = run(text)
    assert "finding" not in report
    assert report["swap"]["out"] == 2


def test_swapping_out_needs_an_area() -> None:
    report = run(doing("swap_out: {at: 16p, length: 4p}"))
    assert report["finding"] == "cpus.0.do[0]: swap_out: this machine has no swap area (swap: 64 MiB)"
    text = PLAIN + "  1b:\n    do:\n      - reclaim: {pages: 2}\n"
    with pytest.raises(UserMistake) as caught:
        run(text)
    assert "it has no swap area" in str(caught.value)


def test_a_step_puts_a_files_pages_in_another_order() -> None:
    setup = (
        "  - file: {name: f, length: 8p}\n  - mmap: {mm: a, at: 64p, length: 8p, file: f, shared: true}\n"
        "  - remap_file_pages: {mm: a, at: 64p, length: 2p, offset: 6p}\n"
    )
    text = doing(
        "truncate: {file: f, length: 4p}", "load: {at: 64p, may: segv}", "load: {at: 66p}", setup=setup
    )
    report = run(text)
    assert "finding" not in report
    assert report["scenario"]["refused_accesses"] == 1
