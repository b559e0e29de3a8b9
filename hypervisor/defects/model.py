# SPDX-License-Identifier: GPL-2.0-or-later
"""What a defect is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hypervisor.defects.seams import Seams

V1_TO_3: Final = ("v1", "v2", "v3")
V4_TO_7: Final = ("v4", "v5", "v6", "v7")
V1_TO_7: Final = V1_TO_3 + V4_TO_7


@dataclass(frozen=True, slots=True)
class Defect:
    """One fault of posted hypervisors, or one rule of theirs that faults build on."""

    id: str
    versions: tuple[str, ...]
    """Posted versions that have it."""
    title: str
    """One sentence."""
    seen: str
    """How it is observed."""
    source: str
    """Where it was read or recorded."""
    apply: "Callable[[Seams], None]"
    """Changes one seam of an assembled hypervisor."""
    needs: tuple[str, ...] = ()
    """Entries without which it cannot show; they are applied first."""
    subops: tuple[str, ...] = ()
    """Sub-ops without which an interface cannot show it."""
    only_on: str = ""
    """Hardware without which a version has not got it; a profile on other hardware is without it, and a test bed can be
    asked to behave as that hardware would make it."""
    backends: tuple[str, ...] = ("vtd", "smmuv3")
    """Backends that can have it: some faults are in one vendor's driver."""
