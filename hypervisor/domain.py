# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM: its memory, its devices, its vCPUs and its part of the PV-IOMMU."""

from typing import Final, NamedTuple

from base.units import CtxNo, DomId, Sbdf
from hypervisor.guest_access import GuestMemory
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.iommu.pool import Arena
from hypervisor.p2m import P2m, Translation


class GuestFault(NamedTuple):
    """A request that the guest's own table refused."""

    sbdf: Sbdf
    address: int
    write: bool
    pasid: int | None
    code: int


class DomainIommu:
    """A domain's contexts.

    ``limit`` contexts may exist beside the default one; it is 0, and every number unknown, until the guest (or, in
    versions without ``IOMMU_init``, domain creation) sets PV-IOMMU up.
    """

    __slots__ = (
        "allowed",
        "arena",
        "arena_pages",
        "contexts",
        "default",
        "faults",
        "faults_lost",
        "initialised",
        "limit",
    )

    def __init__(self, default: IommuContext, *, allowed: bool) -> None:
        self.default: Final = default
        self.contexts: dict[int, IommuContext] = {}
        self.limit = 0
        self.arena: Arena | None = None
        self.arena_pages = 0
        """Most pages that its arena may have: the memory is Xen's, so it has to be granted."""
        self.initialised = False
        self.allowed = allowed
        """Whether this domain may use the hypercall."""
        self.faults: Final[list[GuestFault]] = []
        """Faults of the guest's own stage that it has not fetched."""
        self.faults_lost = 0
        """Those that were dropped because it did not."""

    def get(self, number: int) -> IommuContext | None:
        """Context ``number``, the default one included."""
        return self.contexts.get(number) if number else self.default

    def free_number(self) -> CtxNo | None:
        """The lowest number that no context has."""
        for number in range(1, self.limit + 1):
            if number not in self.contexts:
                return CtxNo(number)
        return None


class Domain:
    """One VM.  ``translation`` reads its frame numbers: a :class:`P2m`, or PV's machine frames."""

    def __init__(
        self, domid: DomId, translation: Translation, iommu: DomainIommu | None, hardware: bool, pv: bool
    ) -> None:
        self.domid: Final = domid
        self.translation: Final = translation
        self.iommu: Final = iommu
        """``None`` for a domain without an IOMMU."""
        self.hardware: Final = hardware
        """The hardware domain (dom0)."""
        self.pv: Final = pv
        self.devices: Final[dict[Sbdf, PciDevice]] = {}
        self.vpci: Final[dict[Sbdf, Sbdf]] = {}
        """The machine's address of each device that the guest sees at an address of its own."""
        self.vcpus: Final[list[Vcpu]] = []
        self.dying = False
        """Being destroyed."""
        self.mmio: Final[list[tuple[int, int]]] = []
        """(first, last) machine frames outside RAM that it may access (iomem access rights)."""

    @property
    def p2m(self) -> P2m:
        """The p2m of a translated domain."""
        assert isinstance(self.translation, P2m)
        return self.translation

    def may_access_mmio(self, mfn: int, count: int) -> bool:
        """Whether it has iomem access to ``count`` machine frames from ``mfn``."""
        return any(first <= mfn and mfn + count - 1 <= last for first, last in self.mmio)

    def __repr__(self) -> str:
        return f"<d{self.domid}{' PV' if self.pv else ''}>"


class Vcpu:
    """A virtual CPU: the domain it belongs to and the address space that its hypercalls' pointers mean."""

    __slots__ = ("domain", "memory", "narrow", "number", "restart")

    def __init__(self, domain: Domain, number: int, memory: GuestMemory) -> None:
        self.domain: Final = domain
        self.number: Final = number
        self.memory = memory
        self.narrow = False
        """Whether its hypercall under way came from 32-bit code."""
        self.restart: tuple[int, ...] = ()
        """Arguments with which a preempted hypercall is issued again."""

    def __repr__(self) -> str:
        return f"d{self.domain.domid}v{self.number}"
