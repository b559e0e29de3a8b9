# SPDX-License-Identifier: GPL-2.0-or-later
"""Fault plans in programs: what fails at the hypervisor's named places, and what that lets a call answer.

``fault plan=arena:3,confirm:2+`` puts a plan of :mod:`testbed.schedule.faults` in place for the rest of the program; an
empty one counts what is reached and lets nothing fail.  It finds every place, tags and Xen's own small objects
included; the quicker operation ``fail`` counts allocations and flushes alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fuzz import events
from fuzz.verbs import ProgramError
from hypervisor.locking.install import install_places
from hypervisor.locking.places import Places
from hypervisor.xen import Xen
from testbed.schedule.faults import FaultPlan, Faults

COPIES: Final = {"copy-in": "unmapped", "copy-out": "readonly"}
"""A copy that fails, and where a struct lies with which the same happens."""
_MEANS: Final = {
    "arena": events.NO_MEMORY,
    "heap": events.NO_MEMORY,
    "xenheap": events.NO_MEMORY,
    "tag": events.NO_MEMORY,
    "confirm": events.UNCONFIRMED,
}


class PlannedFaults(Faults):
    """A plan at work in one hypervisor, until it is removed."""

    def __init__(self, xen: Xen, plan: str, note: Callable[[int], None]) -> None:
        """``note`` is told the events that a failure is.  ``ProgramError`` for what is no plan."""
        try:
            super().__init__(FaultPlan.parse(plan.replace(",", " ")))
        except ValueError as error:
            raise ProgramError(str(error)) from None
        self._places: Final[Places] = install_places(xen)
        self._places.plan = self
        self._note: Final = note
        self.copy = ""
        """The kind of the copy that failed since this was last cleared."""
        self.tag = False
        """A tag was not to be had."""

    def clear(self) -> None:
        """An operation begins."""
        self.copy, self.tag = "", False

    def fails(self, kind: str) -> bool:
        if not super().fails(kind):
            return False
        self._note(_MEANS.get(kind, 0))
        self.tag |= kind == "tag"
        if kind in COPIES:
            self.copy = kind
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no part of the program: nothing fails, and no place is counted."""
        self._places.plan = None
        try:
            yield
        finally:
            self._places.plan = self

    def remove(self) -> None:
        """Nothing fails any more."""
        self._places.remove()
