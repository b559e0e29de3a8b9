# SPDX-License-Identifier: GPL-2.0-or-later
"""Where QEMU's ``intel-iommu`` departs from the VT-d specification.  Nothing else is excused."""

from collections.abc import Callable
from typing import Final

from machine.iommu.unit import Fault
from machine.iommu.vtd.reasons import CONTEXT_RESERVED, NO_READ, NO_WRITE
from oracle.lockstep import Access, Deviation

FPD: Final = 1 << 1
"""Fault processing disable, in the lower word of a context entry."""


def _cached_denial(access: Access) -> bool:
    """The page is cached, the cached rights deny the access, memory denies it as well, and QEMU stays silent."""
    mine, theirs = access.ours, access.model
    return (
        access.cached
        and isinstance(mine, Fault)
        and mine.code in (NO_WRITE, NO_READ)
        and isinstance(theirs, Fault)
        and not theirs.record
    )


def _loud_context(access: Access) -> bool:
    mine, theirs = access.ours, access.model
    return (
        isinstance(mine, Fault)
        and isinstance(theirs, Fault)
        and mine.code == theirs.code == CONTEXT_RESERVED
        and not mine.record
        and any(step.name == "context entry" and step.words[0] & FPD for step in access.walk.steps)
    )


DEVIATIONS: Final[tuple[Deviation, ...]] = (
    Deviation(
        name="cached denial is silent",
        reason="A request that the rights of a cached translation deny is blocked but not recorded; the manual has"
        " every blocked request reported (VT-d 7.1.3, reasons 5 and 6).",
        evidence="QEMU 7.2 and 10.0: a read caches a read-only page, the write after it goes nowhere and FSTS stays 0;"
        " after an invalidation the same write is reported.",
        excuses=_cached_denial,
    ),
    Deviation(
        name="FPD does not silence reserved bits of the context entry",
        reason="Reason Bh is a qualified fault: with FPD = 1 in the context entry it is not recorded (VT-d 7.1.3).",
        evidence="QEMU 7.2 and 10.0 record it; reason 2, 3 and the second-level reasons they silence.",
        excuses=_loud_context,
    ),
)

PASID_PRESENT: Final = 1 << 31
PASID: Final = 0xFFFFF << 40
"""PP and PV in the upper word of a fault record (11.4.14): "PASID Value" is valid only with "PASID Present"."""


def comparable_record(record: tuple[int, ...]) -> tuple[int, ...]:
    """A fault record without what has no meaning: QEMU 7.2 leaves ffffh in PV when there is no PASID."""
    if not record or record[1] & PASID_PRESENT:
        return record
    return record[0], record[1] & ~PASID


def meaningless_bits(first_record: int) -> Callable[[int, int, int], int]:
    """The same for reads of the one fault recording register, at byte offset ``first_record``."""

    def ignore(offset: int, size: int, value: int) -> int:
        return PASID if offset == first_record + 8 and size == 8 and not value & PASID_PRESENT else 0

    return ignore
