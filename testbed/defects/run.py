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
_FULL_ARENA: Final = frozenset({"F1", "S1", "T3"})
"""Shown with an arena of 4 pages, which v1 to v3 take from the command line."""
_SHOWN_WITH_INIT: Final = frozenset({"T7"})
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
    return play(defect, backend, profile_for(defect, backend), (defect.id,) if present else ())


def asked_of(defect: Defect, profile: str, backend: str) -> bool:
    """Whether the guarantee that the defect breaks is one that a hypervisor of ``profile`` can be asked for: its
    interface is that of a version that has the defect."""
    abi = profiles.get(profile).abi
    kinds = {versions.get(version).convention for version in defect.versions if version in versions.names()}
    if defect.only_on or (defect.id in _SHOWN_WITH_INIT and not abi.has("init")):
        return False
    if defect.id == "G5" and backend != "vtd" and abi.has("init"):
        return False
    return all(map(abi.has, defect.subops)) and (not kinds or abi.convention in kinds)


def play(defect: Defect, backend: str, profile: str, defects: tuple[str, ...] = ()) -> Happening:
    """Play the demonstration of ``defect`` on a hypervisor of ``profile`` with ``defects``."""
    guest = "pvh" if defect.id in _PVH else "pv" if defect.id in _PV else None
    busy = SHOWS[defect.id].__module__ in _WITH_NEIGHBOURS
    region = Rmrr(RMRR_BASE, RMRR_BASE + 0x3FFF, (NIC,))
    creation = profiles.get(profile).contexts_at_creation
    option = "nb-ctx=3" if defect.id == "B5" else "arena-order=2" if creation and defect.id in _FULL_ARENA else ""
    stage = Stage(
        Config(
            backend=backend,
            profile=profile,
            guest=guest,
            ram=32 << 20,
            guest_ram=16 << 20,
            rmrrs=(region,) if defect.id.startswith("D") or defect.id in _REGIONS else (),
            defects=defects,
            vcpus=2 if busy else 1,
            domus=(NEIGHBOUR,) if busy else (),
            dom0_iommu=option,
            units=(UnitSpec(_UNITS.get(defect.id, DEFAULT) if backend == "vtd" else DEFAULT),),
        )
    )
    try:
        return Happening(SHOWS[defect.id](stage), stage.lines)
    except HostStopped as stop:
        if not any(str(stop) in line for line in stage.lines):
            stage.note(f"{type(stop).__name__}: {stop}")
        return Happening(False, stage.lines)
