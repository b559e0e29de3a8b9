# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made to fail: a plan as a value, and putting it into a test bed.

``arena:3`` lets the third page that is asked of an arena not be had, ``copy-in:1 confirm:2+`` the first copy from the
guest and every invalidation from the second on; ``any:7`` counts the places of all kinds together.  Kinds are
:data:`hypervisor.locking.places.FAULTS`.  Counting starts when the plan is put in place, so a sweep is: run once with
the empty plan, read :attr:`Faults.reached`, and run again for each.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from hypervisor.locking.install import install_places
from hypervisor.locking.places import FAULTS
from testbed.build import TestBed

ANY: Final = "any"


class Fault(NamedTuple):
    """The ``nth`` visit (from 1) of a place of that kind fails."""

    kind: str
    nth: int
    onwards: bool = False
    """All later ones fail too."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.nth}{'+' * self.onwards}"


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Everything that fails in a run."""

    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, self.faults))

    @staticmethod
    def parse(text: str) -> "FaultPlan":
        """The plan that is written ``arena:3 copy-in:1+``; ``ValueError`` for anything else."""
        faults = []
        for word in text.split():
            found = re.fullmatch(r"([a-z-]+):([1-9]\d*)(\+?)", word)
            if found is None or found[1] not in (ANY, *FAULTS):
                raise ValueError(
                    f"{word!r} is no fault; they are written like 'arena:3', of {ANY}, {', '.join(FAULTS)}"
                )
            faults.append(Fault(found[1], int(found[2]), bool(found[3])))
        return FaultPlan(tuple(faults))


class Faults:
    """A plan at work: what was reached, and what failed."""

    def __init__(self, plan: FaultPlan) -> None:
        self.plan: Final = plan
        self.reached: Final[Counter[str]] = Counter()
        """Visits by kind, and of all kinds together under ``any``."""
        self.failed: Final[list[str]] = []
        """What was made to fail, written as a plan of its own would be."""

    def fails(self, kind: str) -> bool:
        if kind not in FAULTS:
            return False
        self.reached[kind] += 1
        self.reached[ANY] += 1
        for fault in self.plan.faults:
            if fault.kind in (kind, ANY):
                visit = self.reached[fault.kind]
                if visit == fault.nth or (fault.onwards and visit > fault.nth):
                    self.failed.append(f"{kind}:{self.reached[kind]}")
                    return True
        return False

    def restart(self) -> None:
        """Count from the beginning again."""
        self.reached.clear()
        self.failed.clear()


@contextmanager
def injected(bed: TestBed, plan: FaultPlan | str = "") -> Iterator[Faults]:
    """Let ``plan`` work on a test bed."""
    faults = Faults(FaultPlan.parse(plan) if isinstance(plan, str) else plan)
    places = install_places(bed.xen)
    places.plan = faults
    try:
        yield faults
    finally:
        places.remove()
