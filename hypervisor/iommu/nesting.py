# SPDX-License-Identifier: GPL-2.0-or-later
"""What a backend offers beyond :mod:`hypervisor.iommu.backend` where its units have a first stage for guests.

Optional: a backend without it has no attribute ``nesting``, or ``None`` there.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from abi.x1 import FAULTS_KEPT
from hypervisor.domain import GuestFault
from hypervisor.errors import XenBug
from hypervisor.frames import REF
from hypervisor.iommu.backend import Backend, FaultReport
from hypervisor.iommu.context import IommuContext, PciDevice

if TYPE_CHECKING:
    from hypervisor.xen import Xen

Command = tuple[int, int]


class Stage1Features(NamedTuple):
    """What the unit in front of a device can do; ``format`` 0: it has no first stage."""

    format: int = 0
    pasid_bits: int = 0
    info: tuple[int, int, int, int] = (0, 0, 0, 0)


class Nesting(Protocol):
    """One vendor's first stage."""

    def features(self, device: PciDevice) -> Stage1Features: ...

    def table_bytes(self, flags: int) -> int:
        """Bytes of the table that ``flags`` of alloc_nested describe (its first level), 0 if no unit has such a one."""
        ...

    def invalidate(self, context: IommuContext, commands: Sequence[Command]) -> tuple[int, int]:
        """Carry the guest's invalidations out, on the units that use ``context`` and under its tags alone.

        (0 or -errno, how many were done): -EINVAL at one that is not the guest's to give, -EIO.
        """
        ...

    def guests_fault(self, report: FaultReport) -> tuple[int, GuestFault] | None:
        """(requester id, what to tell its guest) if the guest's own stage refused the request."""
        ...


def nesting_of(backend: Backend) -> Nesting | None:
    """The backend's first stage, ``None`` without one."""
    return getattr(backend, "nesting", None)


def forget_nested(xen: "Xen", context: IommuContext) -> None:
    """A nested context is gone: its references, and its parent's knowledge of it."""
    if context.parent is None or context.nested is None:
        return
    for mfn in context.nested.frames:
        xen.frames.put(mfn, 1, REF)
    context.parent.children -= 1
    if context.parent.children < 0:
        raise XenBug(f"{context.parent} has fewer nested contexts than it had")


def route_faults(xen: "Xen") -> None:
    """Take what the units reported: to the guest what its own stage refused, the rest to the host."""
    nesting = nesting_of(xen.backend)
    for report in xen.backend.take_faults():
        found = None if nesting is None else nesting.guests_fault(report)
        if found is None or not _tell_guest(xen, *found):
            xen.faults.append(report)


def _tell_guest(xen: "Xen", requester: int, fault: GuestFault) -> bool:
    """Whether a guest has the device in a nested context, and so learns of it."""
    for domain in xen.domains.values():
        for device in domain.devices.values():
            if requester in device.requester_ids and domain.iommu is not None:
                if device.context is None or device.context.parent is None:
                    return False
                if len(domain.iommu.faults) < FAULTS_KEPT:
                    domain.iommu.faults.append(fault._replace(sbdf=device.sbdf))
                else:
                    domain.iommu.faults_lost += 1
                return True
    return False
