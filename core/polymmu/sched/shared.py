"""Fields that other CPUs use, and what keeps them in order: said once, beside the field.

    truncate_count: int = attrs.field(default=0, metadata=shared(guard=lambda mapping: mapping.i_mmap_lock))

Code reads and writes such a field as any other. Nobody looks at what is said here but the explorer, under which every
access to the field becomes an operation that others may come before (``exploration.fields``); elsewhere it costs
nothing.

* without a guard: every access is an operation (Linux: atomics, READ_ONCE);
* with a ``guard``, the lock without which nobody may change it: reading it without is an operation, reading it with
  it is none, for nobody can change it then;
* ``shootdown``: one of the words by which CPUs agree on who flushes what. They make many interleavings and matter to
  few questions, so accesses are operations only where that is asked for;
* ``reads="guarded"``: who only reads it must have the guard, too. Then no access is an operation, and one without is a
  race;
* ``reads="parts"``: an access without the guard belongs to the operation in progress, whose order with others it
  makes matter, and so does every change;
* ``reads="unseen"``: reading it is not looked at, for it is read all the time. Changing it without the guard is a race.

A guard is asked of the object, and may be several locks: who changes the field must have all of them, for whoever
reads it may have any. None, or no lock: nobody else can reach the object now. What is changed in terms of its old value
(``x.f += 1``) is one operation after ``sched.atomic()``, and otherwise one that store buffers may cut in two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs

from polymmu.sched.locks import Lock

__all__ = ["Guard", "Rule", "owned", "rules_of", "shared"]

Guard = Callable[[Any], Lock | Sequence[Lock] | None]
Reads = Literal["operations", "guarded", "parts", "unseen"]
KEY = "polymmu.shared"


@attrs.frozen
class Rule:
    """What is said of one field. ``owned``: the field is nobody else's, what it names may have shared fields."""

    guard: Guard | None = None
    shootdown: bool = False
    reads: Reads = "operations"
    owned: bool = False


def shared(
    *,
    guard: Guard | None = None,
    shootdown: bool = False,
    reads: Reads = "operations",
) -> dict[str, Rule]:
    """Metadata of an attrs field that other CPUs use."""
    return {KEY: Rule(guard, shootdown, reads)}


def owned() -> dict[str, Rule]:
    """Metadata of a field whose value belongs to the object, and has fields or entries that other CPUs use."""
    return {KEY: Rule(owned=True)}


def rules_of(kind: type) -> dict[str, Rule]:
    """The fields of an attrs class of which something is said."""
    fields = attrs.fields_dict(kind) if attrs.has(kind) else {}
    return {name: field.metadata[KEY] for name, field in fields.items() if KEY in field.metadata}
