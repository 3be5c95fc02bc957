"""The same search by the workers of a Dask cluster; where Dask is not installed, only what is said then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

import polymmu
from polymmu.cli.main import main
from polymmu.exploration.explorer import Limits
from polymmu.workers import connect

PATIENT = Limits(seconds=3600)
SCENARIO = "gup-fast-against-munmap"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, dashboard_address=None, scheduler_port=0
    ) as local:
        yield local


@pytest.mark.filterwarnings("default")  # Dask's own
def test_a_cluster_counts_what_processes_count(cluster: Any) -> None:
    """Two threads of one worker, each with a machine of its own."""
    here = polymmu.explore("001-restart-vma-reused", "x86_64", strategy="dpor", limits=PATIENT, jobs=2)
    there = polymmu.explore(
        "001-restart-vma-reused", "x86_64", strategy="dpor", limits=PATIENT, dask=cluster.scheduler_address
    )
    told = [found.to_dict() for found in (here, there)]
    for each in told:
        del each["seconds"]
    assert told[0] == told[1]
    assert told[0]["complete"]


@pytest.mark.filterwarnings("default")
def test_it_finds_the_same_violation(cluster: Any) -> None:
    address = cluster.scheduler_address
    here, there = (
        polymmu.explore("001-restart-vma-reused", "x86_64", variant="buggy", limits=PATIENT, **how).to_dict()
        for how in ({}, {"dask": address})
    )
    for each in (here, there):
        del each["seconds"]
    assert here == there
    assert here["verdict"] == "violation"


@pytest.mark.filterwarnings("default")
def test_where_nobody_answers_one_line_says_so_soon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("polymmu_dask.PATIENCE", 1)
    began = time.monotonic()
    assert main(["explore", SCENARIO, "--machine", "s390", "--dask", "tcp://127.0.0.1:9"]) == 2
    assert time.monotonic() - began < 60
    err = capsys.readouterr().err
    assert "tcp://127.0.0.1:9: no Dask scheduler answers" in err
    assert len(err.splitlines()) == 1


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("address", ["nonsense", "foo://1.2.3.4:5", "127.0.0.1:notaport"])
def test_what_is_no_address_is_one_line_too(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("polymmu_dask.PATIENCE", 1)
    assert main(["explore", SCENARIO, "--machine", "s390", "--dask", address]) == 2
    assert f"{address}: no Dask scheduler answers" in capsys.readouterr().err


def test_without_the_extra_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    import polymmu_dask

    with (
        pytest.raises(polymmu.UserMistake, match=r"needs the extra 'dask'; pip install 'polymmu\[dask\]'"),
        polymmu_dask.connect("tcp://127.0.0.1:9"),
    ):
        pass


def test_workers_of_a_kind_that_is_not_installed_are_refused() -> None:
    with pytest.raises(polymmu.UserMistake, match="no workers of kind 'dusk'"):
        connect("dusk", "tcp://127.0.0.1:9")


def test_jobs_and_a_cluster_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", SCENARIO, "--jobs", "2", "--dask", "tcp://127.0.0.1:9"]) == 2
    assert "give one of them" in capsys.readouterr().err
