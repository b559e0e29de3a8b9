# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of iommufd's invariants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from testbed.invariants_iommufd.watch import Step, Watch

Check = Callable[[Watch, Step], Iterator[str]]


class Invariant(NamedTuple):
    """A property with its prose."""

    id: str
    text: str
    check: Check


INVARIANTS: Final[dict[str, Invariant]] = {}


def invariant(number: int, text: str) -> Callable[[Check], Check]:
    """Register the function that checks a property."""

    def add(function: Check) -> Check:
        assert str(number) not in INVARIANTS
        INVARIANTS[str(number)] = Invariant(str(number), text, function)
        return function

    return add


def check(watch: Watch, step: Step) -> dict[str, str]:
    """What does not hold after ``step``: by invariant, the first complaint."""
    found = {}
    for entry in INVARIANTS.values():
        complaint = next(entry.check(watch, step), None)
        if complaint is not None:
            found[entry.id] = complaint
    return found
