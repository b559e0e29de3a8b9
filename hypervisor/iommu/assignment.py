# SPDX-License-Identifier: GPL-2.0-or-later
"""Giving devices to domains and taking them back: what the toolstack's assign and deassign come to.

A device that no domain has is in *quarantine*: in a context of its own of dom_io, which maps nothing but the regions
that firmware reserved for it.  So what it still does from before reaches nobody, and two devices in quarantine do not
reach each other.  If no such context can be made (no memory, no tag), dom_io's context 0 takes a device without such
regions, because it maps nothing at all; if that fails too, or the device has regions, it is blocked; and if hardware
does not confirm even that, it stays where it was.

A quarantine context that hardware does not confirm to have forgotten is *dying*: it stays, with its tag and tables, and
every later move into quarantine or out of it tries again to let go of it.
"""

from typing import TYPE_CHECKING

from abi.errno import EINVAL, ENODEV, ENOENT, ENOMEM, ENOSPC
from base.units import CtxNo
from hypervisor.domain import Domain, DomainIommu
from hypervisor.errors import XenBug
from hypervisor.frames import DOMID_IO
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.iommu.moves import move_device, release
from hypervisor.iommu.pasids import forget_pasids
from hypervisor.p2m import P2m

if TYPE_CHECKING:
    from hypervisor.xen import Xen


def attach_device(xen: "Xen", domain: Domain, device: PciDevice, number: int) -> int:
    """Let a new device join ``domain`` in context ``number``: -ENOENT if there is none, -EINVAL if it is dying, or if
    the device is somebody's already."""
    iommu = domain.iommu
    if iommu is None or any(device.sbdf in other.devices for other in xen.all_domains()):
        return -EINVAL
    context = iommu.get(number)
    if context is None:
        return -ENOENT
    if context.dying:
        return -EINVAL
    error = move_device(xen, domain, device, context)
    if not error:
        domain.devices[device.sbdf] = device
    return error


def detach_device(xen: "Xen", domain: Domain, device: PciDevice) -> int:
    """Block a device of ``domain`` and forget it; -ENODEV if the domain has not got it."""
    if domain.devices.get(device.sbdf) is not device:
        return -ENODEV
    source = device.context
    error = block(xen, device)
    if not error:
        del domain.devices[device.sbdf]
        _leave_quarantine(xen, source)
    return error


def remove_device(xen: "Xen", device: PciDevice) -> int:
    """The same of a device of whatever domain; -ENODEV if none has it."""
    for domain in xen.all_domains():
        if domain.devices.get(device.sbdf) is device:
            return xen.detach_device(domain, device)
    return -ENODEV


def assign_device(xen: "Xen", domain: Domain, device: PciDevice) -> int:
    """Put a device into the default context of ``domain``, out of quarantine or another domain if it is there."""
    iommu = domain.iommu
    if iommu is None or domain.dying:
        return -EINVAL
    source = device.context
    error = forget_pasids(xen, device) or move_device(xen, domain, device, iommu.default)
    if not error:
        _give(xen, device, domain)
        _leave_quarantine(xen, source)
    return error


def deassign_device(xen: "Xen", domain: Domain, device: PciDevice) -> int:
    """Take a device of ``domain`` away from it, into quarantine; -ENODEV if the domain has not got it."""
    if domain.devices.get(device.sbdf) is not device:
        return -ENODEV
    error = xen.quarantine(device)
    if not error:
        _give(xen, device, xen.dom_io())
    return error


def deassign_devices(xen: "Xen", domain: Domain) -> int:
    """The same of every device of ``domain``; the errno of the first that stays where it was."""
    for device in list(domain.devices.values()):
        error = xen.deassign_device(domain, device)
        if error:
            return error
    return 0


def dom_io(xen: "Xen") -> Domain:
    """The domain that devices in quarantine belong to, with a default context that maps nothing."""
    context = IommuContext(CtxNo(0), xen.heap)
    error = xen.backend.context_init(context)
    if error:
        context.dying = True  # nothing can be put there
    iommu = DomainIommu(context, allowed=False)
    iommu.limit = xen.quarantine_contexts
    return Domain(DOMID_IO, P2m(0), iommu, hardware=False, pv=False)


def quarantine(xen: "Xen", device: PciDevice) -> int:
    """Put a device into a context of its own of dom_io, or into the next best place; an errno if it is where it was."""
    error = forget_pasids(xen, device)
    if error:
        return error
    dom_io = xen.dom_io()
    iommu = dom_io.iommu
    assert iommu is not None
    _let_go(xen, dom_io)
    context = quarantine_context(xen, dom_io)
    if isinstance(context, IommuContext):
        error = move_device(xen, dom_io, device, context)
        if not error:
            return 0
        context.dying = True
        _let_go(xen, dom_io)
    if iommu.default.table is not None and not device.reserved and not move_device(xen, dom_io, device, iommu.default):
        return 0
    return block(xen, device)


def quarantine_context(xen: "Xen", dom_io: Domain) -> IommuContext | int:
    """A new context of dom_io: or -ENOSPC without a number or a tag, -ENOMEM."""
    iommu = dom_io.iommu
    assert iommu is not None
    number = iommu.free_number()
    if number is None:
        return -ENOSPC
    if not xen.xmalloc("context"):
        return -ENOMEM
    context = IommuContext(number, xen.heap)
    error = xen.backend.context_init(context)
    if error:
        return error
    iommu.contexts[number] = context
    return context


def block(xen: "Xen", device: PciDevice) -> int:
    """Let a device reach nothing at all, in no context; an errno if hardware does not confirm: it is where it was."""
    source = device.context
    if source is None:
        return 0
    error = forget_pasids(xen, device)
    if error:
        return error
    if device.translated:
        error = xen.backend.detach(device)
        if error:
            return error
    source.devices.remove(device)
    release(xen, xen.dom_io(), device, source.stage2)
    device.context = None
    return 0


def _give(xen: "Xen", device: PciDevice, domain: Domain) -> None:
    """Make ``domain`` the one that has ``device``."""
    for other in xen.all_domains():
        if other.devices.get(device.sbdf) is device:
            del other.devices[device.sbdf]
    domain.devices[device.sbdf] = device


def _leave_quarantine(xen: "Xen", context: IommuContext | None) -> None:
    """Free the quarantine context that a device has just left."""
    if context is None or not context.number or xen.quarantined is None:
        return
    iommu = xen.quarantined.iommu
    assert iommu is not None
    if iommu.contexts.get(context.number) is not context:
        return
    if context.devices:
        raise XenBug(f"quarantine {context} has more than the one device that it was made for")
    context.dying = True
    _let_go(xen, xen.quarantined)


def _let_go(xen: "Xen", dom_io: Domain) -> None:
    """Free quarantine contexts that no device is in any more, if hardware confirms to have forgotten them."""
    iommu = dom_io.iommu
    assert iommu is not None
    for context in [context for context in iommu.contexts.values() if context.dying]:
        if not xen.forget_context(context):
            del iommu.contexts[context.number]
