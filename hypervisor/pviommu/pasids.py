# SPDX-License-Identifier: GPL-2.0-or-later
"""attach_pasid and detach_pasid: contexts for requests that carry a PASID.

Experimental (:mod:`abi.x1`), with the errnos that posted headers promise for them.
"""

from typing import TYPE_CHECKING

from abi.errno import EEXIST, EINVAL, ENOENT, EOPNOTSUPP
from hypervisor.domain import Domain, Vcpu
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.iommu.pasids import PasidBackend, move_pasid, pasids_of
from hypervisor.pviommu.result import Result

if TYPE_CHECKING:
    from hypervisor.xen import Xen


def offered_pasids(xen: "Xen") -> PasidBackend | None:
    """The backend's PASIDs, if the interface has them too."""
    return pasids_of(xen.backend) if xen.abi.offers("attach_pasid") else None


def attach_pasid(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """Let requests of a device with a PASID go through a context, 0 included.

    -EOPNOTSUPP where units have no PASIDs, -EINVAL for PASID 0, one that is too wide, or a context that is dying or
    cannot take the device, -ENOENT for an unknown device or context, -EEXIST if the PASID is attached, -ENOMEM.
    """
    number, segment, bus, devfn, pasid = args
    device, error = _checked(xen, domain, segment << 16 | bus << 8 | devfn, pasid)
    if device is None:
        return error, ()
    assert domain.iommu is not None
    context = domain.iommu.get(number)
    if context is None:
        return -ENOENT, ()
    if pasid in device.pasids:
        return -EEXIST, ()
    return _attach(xen, device, pasid, context), ()


def detach_pasid(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """Refuse requests with that PASID from now on; -ENOENT if it is not attached."""
    segment, bus, devfn, pasid = args
    device, error = _checked(xen, domain, segment << 16 | bus << 8 | devfn, pasid)
    if device is None:
        return error, ()
    if pasid not in device.pasids:
        return -ENOENT, ()
    return move_pasid(xen, device, pasid, None), ()


def reattach_pasid(xen: "Xen", device: PciDevice, pasid: int, context: IommuContext) -> int:
    """reattach_device with a PASID: it goes from one context to another; -ENOENT if it is in none."""
    if pasid not in device.pasids:
        return -ENOENT
    return 0 if device.pasids[pasid] is context else _attach(xen, device, pasid, context)


def _checked(xen: "Xen", domain: Domain, sbdf: int, pasid: int) -> tuple[PciDevice | None, int]:
    backend = pasids_of(xen.backend)
    if backend is None:
        return None, -EOPNOTSUPP
    if not pasid or pasid >> backend.pasid_bits:
        return None, -EINVAL
    device = xen.find_device(domain, sbdf)
    return (device, 0) if device is not None else (None, -ENOENT)


def _attach(xen: "Xen", device: PciDevice, pasid: int, context: IommuContext) -> int:
    if context.dying or not device.translated:
        return -EINVAL
    return move_pasid(xen, device, pasid, context)
