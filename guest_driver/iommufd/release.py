# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel's iommufd is meant where releases differ, and the upstream faults that can be switched on.

Source: drivers/iommu/iommufd of Linux 6.6.17, 6.12, 6.14 and 7.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

REPLACE_DROPS_RESERVATIONS: Final = "replace-drops-reservations"
REPLACE_UNATTACHED: Final = "replace-unattached"
DIRTY_WALK_ERRORS_DROPPED: Final = "dirty-walk-errors-dropped"
UNMAP_RESTARTS: Final = "unmap-restarts"
MAP_ERRNO_LOST: Final = "map-errno-lost"

DEFECTS: Final = {
    REPLACE_DROPS_RESERVATIONS: "a replace within one IOAS whose domain switch fails takes away the reserved regions "
    "of every device of the group, although they stay attached (6.12 to 7.0)",
    REPLACE_UNATTACHED: "a device that is not attached may replace the table of its group (up to 6.14)",
    DIRTY_WALK_ERRORS_DROPPED: "reading a dirty bitmap succeeds although tracking is off or the range has holes "
    "(6.12 to 7.0)",
    UNMAP_RESTARTS: "unmap starts again from the beginning after each area, and takes what was mapped meanwhile "
    "(up to 6.14)",
    MAP_ERRNO_LOST: "the error of a driver's map_pages is lost after the unwind (7.0 before its fix)",
}
"""Faults that were released, by id."""

_DEFECTS_OF: Final = {
    "6.6": (REPLACE_UNATTACHED, UNMAP_RESTARTS),
    "6.12": (REPLACE_DROPS_RESERVATIONS, REPLACE_UNATTACHED, DIRTY_WALK_ERRORS_DROPPED, UNMAP_RESTARTS),
    "6.14": (REPLACE_DROPS_RESERVATIONS, REPLACE_UNATTACHED, DIRTY_WALK_ERRORS_DROPPED, UNMAP_RESTARTS),
    "7.0": (REPLACE_DROPS_RESERVATIONS, DIRTY_WALK_ERRORS_DROPPED, MAP_ERRNO_LOST),
}
RELEASES: Final = tuple(_DEFECTS_OF)
LATEST: Final = RELEASES[-1]


@dataclass(frozen=True, slots=True)
class Release:
    """One kernel: its version as (major, minor), and which upstream faults are in it."""

    version: tuple[int, int]
    defects: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"

    def has(self, defect: str) -> bool:
        return defect in self.defects

    @property
    def upgrades_coherency_on_attach(self) -> bool:
        """Before 6.7 an attach could turn a table into a coherency-enforcing one."""
        return self.version < (6, 7)

    @property
    def knows_who_attached(self) -> bool:
        """From 6.15 on a second attach of one device is refused."""
        return self.version >= (6, 15)


def release(name: str = LATEST, defects: frozenset[str] | None = None) -> Release:
    """The kernel called ``name``; ``defects`` of ``None`` means everything as intended, faults mended.

    Upstream's refusal to let an unattached device replace came with 6.15; it counts as a mended fault before.
    ``ValueError`` for unknown names.
    """
    if name not in RELEASES:
        raise ValueError(f"unknown kernel {name!r}; there are: {', '.join(RELEASES)}")
    unknown = (defects or frozenset()) - DEFECTS.keys()
    if unknown:
        raise ValueError(f"unknown defect {sorted(unknown)[0]!r}; there are: {', '.join(DEFECTS)}")
    major, minor = name.split(".")
    return Release((int(major), int(minor)), defects or frozenset())


def as_released(name: str = LATEST) -> Release:
    """The kernel called ``name`` with the faults that it was released with."""
    return release(name, frozenset(_DEFECTS_OF.get(name, ())))
