# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of invariants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from testbed.validate.record import Step
from testbed.validate.world import World

Check = Callable[[World, Step], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Invariant:
    """A property with its prose."""

    id: str
    """Its number, or a word where it has none."""
    text: str
    check: Check


class Complaint(NamedTuple):
    """A property that did not hold after a call."""

    invariant: str
    call: str
    what: str

    def __str__(self) -> str:
        return f"[{self.invariant}] {self.call}: {self.what}"


INVARIANTS: Final[dict[str, Invariant]] = {}


def invariant(number: int | str, text: str) -> Callable[[Check], Check]:
    """Register the function that checks a property."""

    def add(function: Check) -> Check:
        assert str(number) not in INVARIANTS
        INVARIANTS[str(number)] = Invariant(str(number), text, function)
        return function

    return add


def check(world: World, step: Step) -> list[Complaint]:
    """Everything that does not hold after ``step``, one complaint for each property."""
    found = []
    for entry in INVARIANTS.values():
        what = next(entry.check(world, step), None)
        if what is not None:
            found.append(Complaint(entry.id, step.name, what))
    return found
