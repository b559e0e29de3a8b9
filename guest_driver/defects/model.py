# SPDX-License-Identifier: GPL-2.0-or-later
"""What a defect is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from abi.versions import Abi
from guest_driver.port import GuestRam, HypercallPort
from guest_driver.xen_iommu import XenIommu


@dataclass(frozen=True, slots=True)
class Defect:
    """One fault of a posted driver (or of the kernel around it)."""

    id: str
    versions: tuple[str, ...]
    """Names of the drivers that have it."""
    title: str
    """One sentence."""
    seen: str
    """How a test sees it."""
    source: str
    """Where it was read, or whose review it answers."""
    also: tuple[str, ...] = ()
    """Other ids for the same fault."""
    needs: tuple[str, ...] = ()
    """Defects without which it cannot show."""
    build: Callable[[XenIommu], None] | None = None
    """Changes the driver between its making and its registration."""
    port: Callable[[HypercallPort, Abi, GuestRam], HypercallPort] | None = None
    """Stands between the driver and the hypercall."""
    answer: Callable[[int], int] | None = None
    """The errno of a start that failed: (what the reference answers) -> what this driver does."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of xen_iommu_init."""

    @property
    def judged(self) -> bool:
        """True for a point that was looked at and found to be none: it is listed, and nothing is changed."""
        return self.build is None and self.port is None and self.answer is None and not self.options
