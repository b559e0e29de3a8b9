# SPDX-License-Identifier: GPL-2.0-or-later
"""What was wrong with released iommufds and is not hidden here: known upstream faults, as data.

A fault is switched on by its word (:class:`guest_driver.iommufd.release.Release`); the code looks at the word where the
fault was.  ``scenario`` is the run that shows it (``pviommu scenario run NAME --defect ID``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

REPLACE_DROPS_RESERVATIONS: Final = "replace-drops-reservations"
REPLACE_UNATTACHED: Final = "replace-unattached"
DIRTY_WALK_ERRORS_DROPPED: Final = "dirty-walk-errors-dropped"
UNMAP_RESTARTS: Final = "unmap-restarts"
MAP_ERRNO_LOST: Final = "map-errno-lost"
CC_UPGRADE: Final = "cc-upgrade"


@dataclass(frozen=True, slots=True)
class IommufdDefect:
    """One fault.  ``kernels``: the releases of this project's list that have it."""

    id: str
    word: str
    kernels: tuple[str, ...]
    title: str
    seen: str
    source: str
    scenario: str

    @property
    def versions(self) -> tuple[str, ...]:
        return tuple(f"linux-{kernel}" for kernel in self.kernels)


IOMMUFD: Final = (
    IommufdDefect(
        id="L8.1-u",
        word=MAP_ERRNO_LOST,
        kernels=("7.0",),
        title="the error of a driver's map_pages is lost after the unwind, so IOAS_MAP succeeds with nothing mapped",
        seen="IOAS_MAP answers 0, a device's access to the address faults",
        source="Linux 7.0, d6c65b0fd621; fixed by 6fc7e8a3b811",
        scenario="map-error",
    ),
    IommufdDefect(
        id="L8.2",
        word=REPLACE_DROPS_RESERVATIONS,
        kernels=("6.12", "6.14", "7.0"),
        title="a replace within one IOAS whose domain switch fails takes away the reserved regions of every device of "
        "the group, although they stay attached",
        seen="IOAS_MAP over a reserved region of an attached device succeeds afterwards",
        source="Linux 6.12 to 7.0, iommufd_device_do_replace; no fix was found",
        scenario="replace-fails",
    ),
    IommufdDefect(
        id="L8.3",
        word=REPLACE_UNATTACHED,
        kernels=("6.6", "6.12", "6.14"),
        title="a device that is not attached may replace the table of its group",
        seen="the group moves and the device's reserved regions are kept out of neither address space",
        source="Linux up to 6.14; -EINVAL from 6.15 on",
        scenario="replace-2",
    ),
    IommufdDefect(
        id="L8.4",
        word=DIRTY_WALK_ERRORS_DROPPED,
        kernels=("6.12", "6.14", "7.0"),
        title="reading a dirty bitmap succeeds although tracking is off or the range has holes",
        seen="HWPT_GET_DIRTY_BITMAP answers 0 and reports nothing behind the hole",
        source="Linux 6.12 to 7.0, iopt_read_and_clear_dirty_data",
        scenario="dirty-hole",
    ),
    IommufdDefect(
        id="L8.5",
        word=UNMAP_RESTARTS,
        kernels=("6.6", "6.12", "6.14"),
        title="unmap starts again from the beginning after each area, and takes what was mapped there meanwhile",
        seen="an IOAS_MAP that succeeded during an IOAS_UNMAP is gone after it",
        source="Linux up to 6.14; 7.0 moves the start forward",
        scenario="unmap-race",
    ),
    IommufdDefect(
        id="L4.6",
        word=CC_UPGRADE,
        kernels=("6.6",),
        title="attaching a device makes a table a coherency-enforcing one, whose old entries are not",
        seen="an unsnooped access is incoherent on pages mapped before, coherent on those mapped after",
        source="Linux up to 6.6; settled when a table is made from 6.7 on",
        scenario="coherency-upgrade",
    ),
)
"""Known faults, in the order of the project's notes."""
BY_WORD: Final = {defect.word: defect for defect in IOMMUFD}


def named(text: str) -> IommufdDefect:
    """A fault by its id or its word; ``ValueError`` lists them."""
    for defect in IOMMUFD:
        if text in (defect.id, defect.word):
            return defect
    raise ValueError(f"unknown defect {text!r}; there are: {', '.join(defect.id for defect in IOMMUFD)}")
