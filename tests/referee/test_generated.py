"""Generated programs have the same page-table bytes and minor faults after every step, there and here."""

from __future__ import annotations

import pytest

from tests.referee.programs import outcome, program, shortest
from tests.referee.real import too_old_for_the_rules
from tests.referee.twins import Referee

pytestmark = pytest.mark.skipif(bool(too_old_for_the_rules()), reason=too_old_for_the_rules())


def check(referee: Referee, seeds: range, length: int) -> None:
    for seed in seeds:
        steps = program(seed, length)
        if outcome(referee, steps):
            pytest.fail(f"program {seed}: {shortest(referee, steps)}", pytrace=False)


def test_generated_programs_agree_with_the_kernel_after_every_step(referee: Referee) -> None:
    check(referee, range(300), 50)


@pytest.mark.slow
def test_thousands_of_generated_programs_agree_with_the_kernel(referee: Referee) -> None:
    check(referee, range(1000, 6000), 50)


@pytest.mark.slow
def test_long_generated_programs_agree_with_the_kernel(referee: Referee) -> None:
    check(referee, range(6000, 6500), 400)
