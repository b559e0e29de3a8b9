# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry of translation backends: which software half drives which hardware half.

Other packages add theirs with an entry point in the group ``pviommu.backends`` that loads a
:class:`TranslationBackend`; the name of the entry point is the name of the backend.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Final

from hypervisor.frames import FrameTable
from hypervisor.iommu.backend import Backend
from hypervisor.platform import Platform
from hypervisor.smmuv3.driver import Smmuv3Backend
from hypervisor.vtd.scalable import vtd_backend
from machine.firmware import Drhd, Firmware, SmmuNode
from machine.interrupts import (
    ITS_DOORBELL_OFFSET,
    ITS_DOORBELL_PAGE,
    X86_DOORBELL_BASE,
    X86_DOORBELL_SIZE,
)
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.unit import Smmuv3Unit
from machine.iommu.unit import IommuUnit
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.unit import VtdUnit
from machine.mmio import SystemBus
from testbed.units import DEFAULT, UnitOptions, overrides


@dataclass(frozen=True, slots=True)
class TranslationBackend:
    """A vendor: both halves and the platform facts around them."""

    name: str
    title: str
    make_unit: Callable[[SystemBus, UnitOptions], IommuUnit]
    """Hardware half: a unit out of reset on that bus; ``ValueError`` for a kind that it cannot be."""
    unit_base: int
    """Machine address of the first unit's registers; those of further units follow."""
    firmware: Callable[[int], Firmware]
    """The tables that describe a unit at that address."""
    make_driver: Callable[[Platform, FrameTable], Backend]
    """Software half."""
    default_guest: str
    doorbell_window: tuple[int, int]
    """(base, length) of the addresses that are message interrupts."""
    doorbell: int
    """Address that devices write to raise one."""
    doorbell_is_translated: bool
    """Whether a device's write to the doorbell goes through translation (Arm) or around it (x86)."""
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {DEFAULT: {}})
    """Capabilities that a unit may be asked to have, by name."""


VTD_KINDS: Final[Mapping[str, Mapping[str, Any]]] = {
    DEFAULT: {},
    "39-bit": {"address_widths": (39,), "max_guest_address_width": 39},
    "no-superpages": {"superpage_2m": False, "superpage_1g": False},
    "2m": {"superpage_1g": False},
    "caching": {"caching_mode": True},
    "write-buffer": {"write_buffer_flush": True},
    "non-coherent": {"coherent_walk": False},
    "domain-selective": {"page_selective": False},
    "no-snoop": {"snoop_control": False},
    "scalable": {"scalable": True},
    "few-domains": {"domain_id_bits": 8},
    "device-tlb": {"device_tlb": True},
    "no-draining": {"drain_reads": False, "drain_writes": False},
    "moved": {"fault_record_offset": 0x400, "iotlb_offset": 0x200, "fault_records": 1},
}
"""What :class:`VtdConfig` is told beyond its defaults."""

SMMUV3_KINDS: Final[Mapping[str, Mapping[str, Any]]] = {
    DEFAULT: {},
    "40-bit": {"oas": 40},
    "44-bit": {"oas": 44},
    "vmid8": {"vmid16": False},
    "nested": {"stage1": True, "ssid_bits": 12},
    "linear": {"two_level": False, "sid_bits": 12},
    "no-ranges": {"ril": False},
    "break-before-make": {"bbml": 0},
    "sid-17": {"sid_bits": 17},
    "device-tlb": {"ats": True},
    "short-queues": {"cmdq_log2": 2, "eventq_log2": 2},
}
"""The same for :class:`Smmuv3Config`."""


def _vtd_unit(bus: SystemBus, options: UnitOptions) -> IommuUnit:
    config = VtdConfig(**overrides(options.kind, VTD_KINDS))
    return VtdUnit(f"dmar{options.index}", bus, config, options.iotlb_capacity, options.replacement)


def _smmuv3_unit(bus: SystemBus, options: UnitOptions) -> IommuUnit:
    config = Smmuv3Config(**overrides(options.kind, SMMUV3_KINDS))
    return Smmuv3Unit(f"smmu{options.index}", bus, config, options.iotlb_capacity, replacement=options.replacement)


VTD: Final = TranslationBackend(
    name="vtd",
    title="Intel VT-d",
    make_unit=_vtd_unit,
    unit_base=0xFED9_0000,
    firmware=lambda base: Firmware(drhds=(Drhd(base),)),
    make_driver=vtd_backend,
    default_guest="pv",
    doorbell_window=(X86_DOORBELL_BASE, X86_DOORBELL_SIZE),
    doorbell=X86_DOORBELL_BASE,
    doorbell_is_translated=False,
    kinds=VTD_KINDS,
)

SMMUV3: Final = TranslationBackend(
    name="smmuv3",
    title="Arm SMMUv3",
    make_unit=_smmuv3_unit,
    unit_base=0xFD00_0000,
    firmware=lambda base: Firmware(smmus=(SmmuNode(base),)),
    make_driver=Smmuv3Backend,
    default_guest="pvh",
    doorbell_window=(ITS_DOORBELL_PAGE, 0x1000),
    doorbell=ITS_DOORBELL_PAGE + ITS_DOORBELL_OFFSET,
    doorbell_is_translated=True,
    kinds=SMMUV3_KINDS,
)

_BUILT_IN: Final = {VTD.name: VTD, SMMUV3.name: SMMUV3}
_GROUP: Final = "pviommu.backends"


def names() -> tuple[str, ...]:
    """Every registered backend, ours first."""
    others = sorted(point.name for point in entry_points(group=_GROUP) if point.name not in _BUILT_IN)
    return (*_BUILT_IN, *others)


def get(name: str) -> TranslationBackend:
    """The backend called ``name``; ``ValueError`` lists what there is."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    for point in entry_points(group=_GROUP, name=name):
        backend = point.load()
        if not isinstance(backend, TranslationBackend):
            raise ValueError(f"the entry point {point.value} does not hold a TranslationBackend")
        return backend
    raise ValueError(f"unknown backend {name!r}; there are: {', '.join(names())}")
