# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel's iommufd is meant where releases differ, and the upstream faults that can be switched on.

Source: drivers/iommu/iommufd of Linux 6.6.17, 6.12, 6.14 and 7.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from guest_driver.defects.iommufd import BY_WORD, CC_UPGRADE

RELEASES: Final = ("6.6", "6.12", "6.14", "7.0")
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
        """Up to 6.6 an attach could turn a table into a coherency-enforcing one."""
        return CC_UPGRADE in self.defects

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
    unknown = (defects or frozenset()) - BY_WORD.keys()
    if unknown:
        raise ValueError(f"unknown defect {sorted(unknown)[0]!r}; there are: {', '.join(BY_WORD)}")
    major, minor = name.split(".")
    return Release((int(major), int(minor)), defects or frozenset())


def as_released(name: str = LATEST) -> Release:
    """The kernel called ``name`` with the faults that it was released with."""
    return release(name, frozenset(word for word, defect in BY_WORD.items() if name in defect.kernels))
