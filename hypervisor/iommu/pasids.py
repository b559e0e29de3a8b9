# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests with a PASID: each of a device's PASIDs may be in a context of its own.

Optional for a backend: one whose units keep address spaces by PASID has ``set_pasid``.
"""

from typing import TYPE_CHECKING, Protocol, cast

from hypervisor.iommu.backend import Backend
from hypervisor.iommu.context import IommuContext, PciDevice

if TYPE_CHECKING:
    from hypervisor.xen import Xen


class PasidBackend(Protocol):
    """What such a backend offers."""

    pasid_bits: int
    """Width of the PASIDs that can be attached."""

    def set_pasid(self, device: PciDevice, pasid: int, context: IommuContext | None) -> int:
        """Requests of the device with ``pasid`` go through ``context``, or are refused: 0, -EINVAL, -ENOMEM, -EIO."""
        ...


def pasids_of(backend: Backend) -> PasidBackend | None:
    """The backend's PASIDs, ``None`` without them."""
    return cast(PasidBackend, backend) if hasattr(backend, "set_pasid") else None


def move_pasid(xen: "Xen", device: PciDevice, pasid: int, target: IommuContext | None) -> int:
    """Put a PASID of the device into ``target``, or nowhere; 0, or an errno with the PASID where it was."""
    backend = pasids_of(xen.backend)
    assert backend is not None
    error = backend.set_pasid(device, pasid, target)
    if error:
        return error
    source = device.pasids.pop(pasid, None)
    if source is not None:
        source.pasids.remove((device, pasid))
    if target is not None:
        device.pasids[pasid] = target
        target.pasids.append((device, pasid))
    return 0


def forget_pasids(xen: "Xen", device: PciDevice) -> int:
    """Detach every PASID of a device that changes hands; an errno with the rest where they were."""
    for pasid in list(device.pasids):
        error = move_pasid(xen, device, pasid, None)
        if error:
            return error
    return 0
