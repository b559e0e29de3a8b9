# SPDX-License-Identifier: GPL-2.0-or-later
"""Going on after a fault that is known: the shadow takes over what the hypervisor did, right or wrong.

Posted hypervisors break the contract in nearly every call.  A campaign on one of them would see the same few faults
for ever; so what was found once is no longer held against it, and what happens behind it comes into sight.
"""

from typing import Final

from base.units import DomId
from fuzz.domains import Domains
from fuzz.driver_contract import CONTRACT
from fuzz.intervals import Intervals
from fuzz.shadow import Shadow
from fuzz.spans import joined
from hypervisor.domain import DomainIommu
from testbed.build import TestBed
from testbed.reachable import reachable

Known = tuple[str, str, str]
"""(clause, verb, errno)."""
PASSABLE: Final = frozenset(
    {
        *("answer", "written-back", "short-of-memory", "confirmed", "idle", "let-go", "yields"),
        *("device-reach", "quarantine", "toolstack", "left-over"),
    }
)
"""Clauses of single hypercalls after which a program can go on.  At driver level every call is judged by itself, and a
program can go on after any clause but a dead kernel."""
LASTING: Final = frozenset(f"guest:{number}" for number in (9, 10, 12, 17, 19, 21, 29, 32, 33, 42))
"""Clauses about a guest's state: broken once, they are broken after every operation from then on."""


def resync(domains: Domains, bed: TestBed) -> None:
    """Let the shadows say what the machine says."""
    domains.follow()
    for domid, shadow in domains.shadows.items():
        iommu = bed.xen.domains[DomId(domid)].iommu
        if iommu is not None:
            _resync(shadow, iommu, bed)
        shadow.unsure = shadow.unsure or bool(bed.xen.kept)


def _resync(shadow: Shadow, iommu: DomainIommu, bed: TestBed) -> None:
    shadow.initialised, shadow.limit, shadow.usable = iommu.initialised, iommu.limit, iommu.allowed
    shadow.spaces.clear()
    shadow.regions.clear()
    shadow.dying = {int(number) for number, context in iommu.contexts.items() if context.dying}
    for number, context in iommu.contexts.items():
        inside = {
            region for sbdf, home in shadow.homes.items() if home == number for region in shadow.devices.get(sbdf, ())
        }
        space = Intervals()
        for start, end, delta, access in joined(reachable(bed.memory, context.table).leaves):
            space.add(start, end - start, delta, access)
        for first, last in inside:
            space.remove(first, last - first + 1)
        shadow.spaces[int(number)] = space
        shadow.regions[int(number)] = sorted(inside)


def is_swept(clause: str) -> bool:
    """Whether the sweep finds it: then it is known or not whatever the operation was."""
    return clause in ("tree", "superpage", "firmware", "guest-memory", "same-reach") or clause.startswith("invariant:")


def known_as(clause: str, verb: str, errno: str) -> Known | None:
    """What a fault is known as from now on; ``None`` for one that nothing can go on after."""
    if is_swept(clause) or clause in LASTING:
        return clause, "*", "*"
    return (clause, verb, errno) if clause in PASSABLE or clause in CONTRACT or clause.startswith("guest:") else None


def parse_known(text: str) -> set[Known]:
    """What a bench calls known: ``clause/verb/errno``, joined by commas; ``ValueError`` for anything else."""
    known = set()
    for word in filter(None, text.split(",")):
        parts = word.split("/")
        if len(parts) != 3 or known_as(*parts) != tuple(parts):
            raise ValueError(f"{word!r} is no fault that can be known: clause/verb/errno, or clause/*/* of a sweep")
        known.add((parts[0], parts[1], parts[2]))
    return known


def format_known(known: set[Known]) -> str:
    """The reverse."""
    return ",".join(sorted("/".join(parts) for parts in known))
