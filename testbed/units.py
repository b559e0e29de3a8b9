# SPDX-License-Identifier: GPL-2.0-or-later
"""Which remapping units a machine has: what each is capable of, whose requests reach it, how firmware says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from base.units import Sbdf
from machine.dma import DmaFabric
from machine.firmware import Firmware
from machine.iommu.replacement import MOST_STALE, Replacement
from machine.iommu.unit import IommuUnit
from machine.pci import PciTopology

DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """What a backend is asked to build."""

    index: int = 0
    """Its number in the machine."""
    kind: str = DEFAULT
    """Capabilities: names of the backend's :attr:`~testbed.backends.TranslationBackend.kinds`, joined with ``+``."""
    iotlb_capacity: int | None = None
    """Entries of the IOTLB, ``None``: as many as ``replacement`` lets it keep."""
    replacement: Replacement | None = MOST_STALE
    """How long every cache of the unit remembers."""


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """One unit of a machine.  ``kind`` as in :class:`UnitOptions`."""

    kind: str = DEFAULT
    scope: tuple[Sbdf, ...] = ()
    """The functions behind it; a bridge stands for what is behind the bridge.  None: whatever no other unit names."""
    stream_offset: int = 0
    """SMMUv3: what is added to a requester id to give the stream id."""


ONE_UNIT: Final = (UnitSpec(),)


def check_units(specs: Sequence[UnitSpec]) -> None:
    """``ValueError`` unless exactly one unit takes what the others leave, and no function is named twice."""
    if sum(not spec.scope for spec in specs) != 1:
        raise ValueError("exactly one unit has no scope of its own and covers what the others leave")
    named = [sbdf for spec in specs for sbdf in spec.scope]
    if len(set(named)) != len(named):
        raise ValueError("a function is in the scope of one unit only")


def overrides(kind: str, kinds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What ``kind`` changes of a default configuration; ``ValueError`` names the kinds that there are."""
    found: dict[str, Any] = {}
    for word in kind.split("+"):
        if word not in kinds:
            raise ValueError(f"unknown kind of unit {word!r}; there are: {', '.join(kinds)}")
        found.update(kinds[word])
    return found


def firmware_for(parts: Sequence[Firmware], specs: Sequence[UnitSpec], pci: PciTopology) -> Firmware:
    """One machine's tables: ``parts`` describe a unit each, as if it were alone, in the order of ``specs``.

    DMAR scopes name functions and bridges; IORT mappings name the requester ids that come out of them.
    """
    drhds, smmus = [], []
    for part, spec in zip(parts, specs):
        rest = not spec.scope
        drhds += [replace(drhd, include_all=rest, scope=spec.scope) for drhd in part.drhds]
        ids = tuple(sorted(requesters_in(spec.scope, pci)))
        smmus += [replace(node, include_all=rest, scope=ids, stream_offset=spec.stream_offset) for node in part.smmus]
    return Firmware(drhds=tuple(drhds), smmus=tuple(smmus))


def wire(fabric: DmaFabric, units: Sequence[IommuUnit], specs: Sequence[UnitSpec], pci: PciTopology) -> None:
    """Lead every requester id to the unit that has it in its scope."""
    for unit, spec in zip(units, specs):
        if not spec.scope:
            fabric.cover(unit, None, spec.stream_offset)
        for requester in requesters_in(spec.scope, pci):
            fabric.cover(unit, requester, spec.stream_offset)


def requesters_in(scope: Sequence[Sbdf], pci: PciTopology) -> set[Sbdf]:
    """Requester ids of the functions in ``scope``, and of those behind the bridges in it."""
    inside = set(scope)
    found: set[Sbdf] = set()
    for sbdf in pci.functions if inside else ():
        if sbdf in inside or any(bridge.sbdf in inside for bridge in pci.bridges_above(sbdf)):
            found.update(pci.requester_ids(sbdf))
    return found
