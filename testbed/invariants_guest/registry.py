# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of invariants."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
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


class Key(NamedTuple):
    """What makes two failures the same: the property, the call after which it was broken, and what broke it."""

    invariant: str
    call: str
    about: str = ""


class About(str):
    """What a check has to say, and which of several equal things it says it about (a context, a device)."""

    about: str

    def __new__(cls, what: str, about: str) -> About:
        said = super().__new__(cls, what)
        said.about = about
        return said


class Complaint(NamedTuple):
    """A property that did not hold after a call."""

    invariant: str
    call: str
    what: str
    about: str = ""

    @property
    def key(self) -> Key:
        return Key(self.invariant, self.call, self.about)

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


def check(world: World, step: Step, known: Container[Key] = ()) -> list[Complaint]:
    """Everything that does not hold after ``step`` and is not among ``known``, one complaint for each property."""
    found = []
    for entry in INVARIANTS.values():
        for what in entry.check(world, step):
            complaint = Complaint(entry.id, step.name, str(what), what.about if isinstance(what, About) else "")
            if not known or complaint.key not in known:
                found.append(complaint)
                break
    return found
