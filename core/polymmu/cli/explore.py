"""``polymmu explore SCENARIO``: look for an interleaving that breaks something, or prove that there is none."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from polymmu.cli import common
from polymmu.cli.watching import watching
from polymmu.errors import UserMistake
from polymmu.exploration import MEMORY_MODELS, STRATEGIES

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "explore", help="every interleaving of a scenario, up to the bounds", description=__doc__
    )
    parser.add_argument(
        "scenario", metavar="SCENARIO", nargs="*", help="an installed scenario's name, or a YAML file"
    )
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="each scenario (default: the whole gallery) on each architecture, by variant or release",
    )
    parser.add_argument(
        "--machine", metavar="M", help="where it happens (default: the plain machine of the host's kind)"
    )
    parser.add_argument(
        "--variant", metavar="NAME", help="buggy or fixed, of a scenario with both (default: fixed)"
    )
    parser.add_argument(
        "--strategy", choices=STRATEGIES, default="portfolio", help="how to search (default: all in turn)"
    )
    parser.add_argument("--random", type=int, default=100, metavar="N", help="random schedules tried first")
    parser.add_argument("--executions", type=int, default=20_000, metavar="N", help="stop after so many")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="stop after so long")
    parser.add_argument(
        "--preemptions", type=int, default=2, metavar="N", help="the most that the fallback search covers"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=100_000,
        metavar="N",
        help="end an execution after so many (then: bounded)",
    )
    parser.add_argument(
        "--shrink", type=int, default=400, metavar="N", help="executions spent on a shorter schedule"
    )
    parser.add_argument(
        "--speculate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let every CPU fetch a translation just before the kernel takes it away (default: yes)",
    )
    parser.add_argument(
        "--memory-model",
        choices=MEMORY_MODELS,
        help="sequential consistency, or store buffers where the hardware has such (default: the scenario's, or sc)",
    )
    parser.add_argument(
        "--require-complete", action="store_true", help="exit with 1 unless every interleaving was covered"
    )
    parser.add_argument("--replay", metavar="FILE", help="where to write a schedule that breaks something")
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="go on from FILE if it is there; leave it where Ctrl-C or a limit ended the search",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="search with N processes")
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="search with the workers of this scheduler (needs polymmu[dask])"
    )
    parser.add_argument("--timeline", metavar="FILE", help="where to write that schedule for Perfetto")
    common.add_sets(parser)
    common.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Explore it."""
    from polymmu.description.load_scenario import load_scenario
    from polymmu.exploration.explored import explore
    from polymmu.exploration.explorer import Limits

    if options.jobs < 1:
        raise UserMistake(f"--jobs {options.jobs} is too few; give 1 or more")
    if options.jobs > 1 and options.dask is not None:
        raise UserMistake("--jobs and --dask both say who searches; give one of them")
    for name in ("random", "executions", "seconds", "preemptions", "steps", "shrink"):
        if getattr(options, name) < 0:
            raise UserMistake(f"--{name} {getattr(options, name)} is negative; give 0 or more")
    limits = Limits(
        random=options.random,
        executions=options.executions,
        seconds=options.seconds,
        preemptions=options.preemptions,
        steps=options.steps,
        shrink=options.shrink,
    )
    if options.matrix:
        if options.resume is not None:
            raise UserMistake("--resume is for one scenario; leave out --matrix")
        return _matrix(options, limits)
    if len(options.scenario) != 1:
        raise UserMistake("explore takes one scenario; several, or the whole gallery, with --matrix")
    file = load_scenario(options.scenario[0])
    with watching(options) as watcher:
        found = explore(
            file,
            options.machine,
            variant=options.variant,
            strategy=options.strategy,
            sets=options.set,
            limits=limits,
            seed=options.seed or 0,
            speculate=options.speculate,
            memory_model=options.memory_model,
            replay=options.replay
            or f"{file.scenario.name}-{Path(options.machine or 'here').stem}.replay.json",
            timeline=options.timeline,
            progress=watcher and partial(watcher, file.scenario.name),
            jobs=options.jobs,
            dask=options.dask,
            resume=options.resume,
        )
    common.emit(options, found.to_dict(), lambda: str(found))
    verdict = found.verdict
    if verdict.interrupted:
        return 130
    if verdict.verdict == "violation":
        return 1
    return 1 if options.require_complete and not verdict.complete else 0


def _matrix(options: argparse.Namespace, limits: Any) -> int:
    """One exploration per cell; interrupted it says what it has."""
    from polymmu.description.installed import scenario_files
    from polymmu.description.load_scenario import load_scenario
    from polymmu.exploration.explored import workers_of
    from polymmu.exploration.matrix import cells, matrix_text

    names = options.scenario or [name for name in scenario_files() if name[0].isdigit()]
    found = []
    interrupted = False
    with watching(options) as watcher, workers_of(options.jobs, options.dask) as workers:
        try:
            for cell in cells(
                [load_scenario(name) for name in names],
                machine=options.machine,
                variant=options.variant,
                strategy=options.strategy,
                sets=options.set,
                limits=limits,
                seed=options.seed or 0,
                workers=workers,
                progress=watcher,
            ):
                found.append(cell)
                interrupted |= cell.finding.verdict.interrupted
                if interrupted:
                    break
        except KeyboardInterrupt:
            interrupted = True
    value: dict[str, Any] = {"schema": 1, "cells": [cell.to_dict() for cell in found]}
    if interrupted:
        value["partial"] = True
    common.emit(options, value, lambda: matrix_text(found))
    if interrupted:
        return 130
    return 0 if all(cell.is_as_it_should_be for cell in found) else 1
