"""The explorer tells of nothing in the code as it is (``tests.explore.alarms``)."""

from __future__ import annotations

import pytest

from tests.explore.alarms import ALL, alarms, clean_cells

CELLS = clean_cells()


def test_executions_are_spread_over_all_cells() -> None:
    told = list(alarms(CELLS[:: len(CELLS) // 8], 80))
    assert 40 <= sum(each.executions for each in told) <= 80
    assert [each for each in told if each.finding] == []


@pytest.mark.long
def test_there_is_no_alarm_in_a_hundred_thousand_executions() -> None:
    told = list(alarms(CELLS, ALL))
    assert [each for each in told if each.finding] == []
    assert sum(each.executions for each in told) >= ALL * 9 // 10
