"""Every answer that HP's ia64 simulator gave, asked of the model of the translation unit.

100 random cases, 3,327 probes; the README beside the data says what an operation and an answer are. A null in an
answer is a register that the fault leaves alone, or that the manual does not define for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from polymmu_ia64.entries import R, W, X
from tests.arches.captured import DATA
from tests.arches.ia64.translation_unit import Fault, MachineCheck, TranslationUnit

SET = json.loads((DATA / "ia64-ski.json").read_text())
CASES: list[dict[str, Any]] = SET["cases"]
NEEDS = {"ld": R, "st": W, "xchg": R | W, "fetch": X}
NO_ANSWER = {"rr", "pta", "pkr", "psr", "mem", "ptc.e", "ptr.d", "ptr.i"}


def answer(unit: TranslationUnit, memory: dict[int, int], name: str, args: list[int]) -> list[Any] | None:
    """Do one operation; its answer in the data set's words."""
    side = unit.instructions if name.endswith(".i") else unit.data
    plain: dict[str, Callable[[], Any]] = {
        "rr": lambda: unit.rr.__setitem__(*args),
        "pta": lambda: setattr(unit, "pta", args[0]),
        "pkr": lambda: unit.keys.__setitem__(*args),
        "psr": lambda: setattr(unit, "psr", args[0]),
        "mem": lambda: memory.__setitem__(*args),
        "ptc.e": unit.purge_cache,
        "itc": lambda: unit.insert(side, *args),
        "itr": lambda: unit.insert(side, args[1], args[2], args[3], slot=args[0]),
        "ptc": lambda: unit.purge(*args),
        "ptr": lambda: unit.purge_registers(side, *args),
    }
    asked: dict[str, Callable[[], int]] = {
        "thash": lambda: unit.thash(args[0]),
        "ttag": lambda: unit.ttag(args[0]),
        "tak": lambda: unit.tak(args[0]),
        "probe.r": lambda: unit.probe(args[0], R, args[1]),
        "probe.w": lambda: unit.probe(args[0], W, args[1]),
    }
    try:
        if name in NEEDS:
            return ["pa", unit.reference(args[0], NEEDS[name], args[1])]
        if name == "tpa":
            return ["pa", unit.tpa(args[0])]
        if name in asked:
            return ["value", int(asked[name]())]
        (plain.get(name) or plain[name.split(".", 1)[0]])()
    except MachineCheck:
        return ["machine check"]
    except Fault as fault:
        return ["fault", fault.vector, fault.ifa, fault.itir, fault.iha, fault.isr]
    return None if name in NO_ANSWER else ["ok"]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{n}-{CASES[n]['kind']}")
def test_the_model_answers_as_the_simulator_did(number: int) -> None:
    case = CASES[number]
    memory: dict[int, int] = {}
    unit = TranslationUnit(lambda pa: memory.get(pa, 0), va_bits=case["va_bits"], pa_bits=case["pa_bits"])
    for step, (name, *rest) in enumerate(case["ops"]):
        expected = rest.pop() if name not in NO_ANSWER else None
        if expected is not None and expected[0] == "fault":
            del expected[1]  # the fault's name; its vector follows
        assert answer(unit, memory, name, rest) == expected, (step, name, [hex(n) for n in rest])


def test_the_set_is_whole() -> None:
    asked = sum(
        len(op) > 1 and op[0] not in NO_ANSWER and op[0][:2] not in ("it", "pt")
        for c in CASES
        for op in c["ops"]
    )
    assert (len(CASES), asked) == (100, SET["probes"])
