# SPDX-License-Identifier: GPL-2.0-or-later
"""Playing a demonstration: once with the defect, once without."""

from collections.abc import Callable
from typing import Final

from abi import versions
from abi.versions import Convention
from hypervisor import profile as profiles
from hypervisor.defects import catalogue
from hypervisor.defects.model import Defect
from hypervisor.errors import HostStopped
from machine.firmware import Rmrr
from testbed.build import NIC
from testbed.config import Config
from testbed.defects import shows, shows_domains, shows_locks, shows_memory, shows_passes
from testbed.defects.shows import RMRR_BASE
from testbed.defects.shows_domains import NEIGHBOUR
from testbed.defects.stage import Happening, Stage
from testbed.units import DEFAULT, UnitSpec

Show = Callable[[Stage], bool]
SHOWS: Final[dict[str, Show]] = {
    name: found
    for name in catalogue.DEFECTS
    for module in (shows, shows_domains, shows_locks, shows_memory, shows_passes)
    if (found := getattr(module, name.lower(), None)) is not None
}
"""By id of the defect."""
_SMALL_ARENA: Final = frozenset({"F1", "S1"})
"""Shown on the interface that lets the guest choose a small arena."""
_PVH: Final = frozenset({"D6", "F4", "F7", "R4"})
_WITH_NEIGHBOURS: Final = (shows_domains.__name__, shows_locks.__name__)
"""Shown with two vCPUs and a guest domain beside the hardware domain."""
_PV: Final = frozenset({"F2", "F3", "F5", "H8", "R1", "R5", "S6"})
_REGIONS: Final = frozenset({"S4", "S5"})
_UNITS: Final = {"G3": "few-domains", "G5": "39-bit"}
"""Shown on units of another kind than the usual one."""


def profile_for(defect: Defect, backend: str = "vtd") -> str:
    """The sound profile that the defect is shown beside on that backend."""
    sound = profiles.get("v7-fixed")
    if defect.id == "G5" and backend != "vtd":
        return "v3-fixed"  # from v4 on it is the VT-d driver's
    newest = sound.abi.name
    tagged = {name for name in versions.names() if versions.get(name).convention is Convention.UNION}
    if defect.id in _SMALL_ARENA or newest in defect.versions or not tagged & set(defect.versions):
        return sound.name
    return "v3-fixed"


def backends_for(defect: Defect) -> tuple[str, ...]:
    """Backends on which it can be shown."""
    return defect.backends


def happen(defect: Defect, backend: str, *, present: bool) -> Happening:
    """Play the demonstration on a hypervisor with the defect, or on the one without."""
    guest = "pvh" if defect.id in _PVH else "pv" if defect.id in _PV else None
    busy = SHOWS[defect.id].__module__ in _WITH_NEIGHBOURS
    region = Rmrr(RMRR_BASE, RMRR_BASE + 0x3FFF, (NIC,))
    stage = Stage(
        Config(
            backend=backend,
            profile=profile_for(defect, backend),
            guest=guest,
            ram=32 << 20,
            guest_ram=16 << 20,
            rmrrs=(region,) if defect.id.startswith("D") or defect.id in _REGIONS else (),
            defects=(defect.id,) if present else (),
            vcpus=2 if busy else 1,
            domus=(NEIGHBOUR,) if busy else (),
            dom0_iommu="nb-ctx=3" if defect.id == "B5" else "",
            units=(UnitSpec(_UNITS.get(defect.id, DEFAULT) if backend == "vtd" else DEFAULT),),
        )
    )
    try:
        return Happening(SHOWS[defect.id](stage), stage.lines)
    except HostStopped as stop:
        if not any(str(stop) in line for line in stage.lines):
            stage.note(f"{type(stop).__name__}: {stop}")
        return Happening(False, stage.lines)
