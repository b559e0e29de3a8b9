# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hypervisor guarantees, asked of a whole profile: one clause for every catalogued defect.

A clause is the demonstration of a defect, played on the profile as it is: it holds if what a sound hypervisor
guarantees was the case.  A fixed profile passes them all; a posted one fails those that its own defects explain, and no
others.
"""

from collections.abc import Iterator
from typing import Final

from hypervisor import profile as profiles
from hypervisor.defects.catalogue import DEFECTS, complete
from testbed.conformance.clause import Result
from testbed.defects.run import asked_of, play

SHOWS_TOO: Final = {
    "S4": ("D5",),
    "D5": ("S4",),
    "F2": ("F5",),
    "F5": ("F2",),
    "F4": ("F2",),
}
"""Clauses that another defect breaks as well: a region that is mapped over the guest's page (S4 is half of D5); a frame
without an owner that is mapped (F2 maps every frame, F5 those); a foreign frame that is not refused at all (F2)."""


def check_profile(profile: str, backend: str, defects: tuple[str, ...] = ()) -> Iterator[Result]:
    """Every clause that ``profile``, with ``defects`` besides its own, over ``backend`` can be asked, each on a machine
    of its own."""
    for name in clauses(profile, backend):
        happening = play(DEFECTS[name], backend, profile, defects)
        yield Result("profile", name, None if happening.holds else happening.lines[-1])


def clauses(profile: str, backend: str) -> tuple[str, ...]:
    """Ids of the defects whose guarantees can be asked for."""
    return tuple(d.id for d in DEFECTS.values() if backend in d.backends and asked_of(d, profile, backend))


def expected_failures(profile: str, backend: str, defects: tuple[str, ...] = ()) -> frozenset[str]:
    """Clauses that the defects of ``profile`` and ``defects`` explain."""
    has = {defect.id for defect in complete((*profiles.get(profile).defects, *defects))}
    return frozenset(name for name in clauses(profile, backend) if has & {name, *SHOWS_TOO.get(name, ())})
