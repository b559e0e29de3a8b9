# SPDX-License-Identifier: GPL-2.0-or-later
"""A test bed as a value: everything that :func:`testbed.build.build` needs to know, and nothing that it decides."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from base.units import Sbdf
from machine.firmware import Rmrr
from machine.iommu import replacement
from testbed.units import ONE_UNIT, UnitSpec, check_units

MIB: Final = 1 << 20

GUESTS: Final = ("pv", "pvh")


MOST_VCPUS: Final = 64
"""Of a domain."""
SWITCHED_ON: Final[ContextVar[tuple[str, ...]]] = ContextVar("defects of every configuration", default=())
"""What :attr:`Config.defects` is unless somebody says otherwise; the command line's ``--defect`` sets it."""


@dataclass(frozen=True, slots=True)
class DomU:
    """A translated guest domain beside the hardware domain."""

    ram: int = 4 * MIB
    """Bytes of RAM; a multiple of 2 MiB."""
    devices: tuple[Sbdf, ...] = ()
    """Devices that are passed through to it."""
    vpci: bool = False
    """It sees them at addresses of its own, as Xen's vPCI hands them out: 00:01.0 and up, in their order."""
    vcpus: int = 1
    arena_pages: int | None = None
    """Pages that it may reserve for PV-IOMMU, ``None``: what a toolstack gives by default."""


@dataclass(frozen=True, slots=True)
class Config:
    """Two test beds built from equal values behave alike, to the byte."""

    backend: str = "vtd"
    """A name in :mod:`testbed.backends`."""
    profile: str = "v7-fixed"
    """A name in :mod:`hypervisor.profile`."""
    guest: str | None = None
    """Kind of the hardware domain: "pv" (its frame numbers are scattered machine frames) or "pvh" (translated);
    ``None`` is what the backend's architecture usually has."""
    ram: int = 128 * MIB
    """Bytes of RAM of the machine; a multiple of 2 MiB, at most 3 GiB."""
    guest_ram: int = 32 * MIB
    """Bytes of RAM of the hardware domain; a multiple of 2 MiB."""
    vcpus: int = 1
    """Virtual CPUs of the hardware domain."""
    seed: int = 0
    """Decides where the guest's pages lie in machine memory."""
    iotlb_capacity: int | None = None
    """Entries of every unit's IOTLB, whatever ``iotlb`` says; ``None``: as ``iotlb`` says."""
    iotlb: str = "stale"
    """How long the units' caches remember: ``stale``, ``eager``, ``oldest:N`` or ``random:SEED``
    (:mod:`machine.iommu.replacement`)."""
    units: tuple[UnitSpec, ...] = ONE_UNIT
    """The machine's remapping units."""
    endpoints: tuple[Sbdf, ...] = ()
    """Further PCI functions of the hardware domain, without registers: they only issue requests."""
    domus: tuple[DomU, ...] = ()
    """Guest domains, with ids from 1 on."""
    device_tlb: bool = False
    """The copier keeps translations in a cache of its own (ATS), which its unit has to support."""
    phantom_functions: int = 0
    """log2 of the requester ids that the rogue device uses, 0 to 3: above its own those of phantom functions."""
    defects: tuple[str, ...] = field(default_factory=SWITCHED_ON.get)
    """Ids of :mod:`hypervisor.defects.catalogue`, switched on over those that the profile has."""
    dom0_iommu: str = ""
    """Xen's ``dom0-iommu=`` option (:mod:`hypervisor.dom0_options`)."""
    rmrrs: tuple[Rmrr, ...] = ()
    """Reserved memory regions that firmware declares, outside the hardware domain's RAM."""

    def __post_init__(self) -> None:
        if self.ram % (2 * MIB) or not 4 * MIB <= self.ram <= 3072 * MIB:
            raise ValueError(f"RAM of {self.ram:#x} bytes: it takes a multiple of 2 MiB from 4 MiB to 3 GiB")
        if self.guest_ram % (2 * MIB) or not 2 * MIB <= self.guest_ram <= self.ram - 2 * MIB:
            raise ValueError(f"guest RAM of {self.guest_ram:#x} bytes: a multiple of 2 MiB, less than the RAM")
        if self.guest is not None and self.guest not in GUESTS:
            raise ValueError(f"unknown guest kind {self.guest!r}; there are: {', '.join(GUESTS)}")
        if not 1 <= self.vcpus <= MOST_VCPUS:
            raise ValueError(f"{self.vcpus} vCPUs: it takes 1 to {MOST_VCPUS}")
        if not 0 <= self.phantom_functions <= 3:
            raise ValueError(f"2^{self.phantom_functions} requester ids: a function has 2^0 to 2^3")
        replacement.parse(self.iotlb)
        check_units(self.units)
        for rmrr in self.rmrrs:
            if rmrr.base % 4096 or (rmrr.last + 1) % 4096 or rmrr.last < rmrr.base:
                raise ValueError(f"a reserved region covers whole pages, not {rmrr.base:#x} to {rmrr.last:#x}")
