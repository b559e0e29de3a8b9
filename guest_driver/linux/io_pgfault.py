# SPDX-License-Identifier: GPL-2.0-or-later
"""Page requests of devices (drivers/iommu/io-pgfault.c): collected into groups, handled by whoever owns the domain.

A group is complete with its last page; it is answered as a whole, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from abi.errno import EINVAL, ENODEV, ENOMEM
from guest_driver.linux.iommu import IOMMU_DOMAIN_NESTED, IOMMU_NO_PASID
from guest_driver.linux.iommu_core import dev_iommu_ops
from guest_driver.linux.iommu_pasid import iommu_attach_handle_get

if TYPE_CHECKING:
    from guest_driver.linux.device import Device

PASID_VALID: Final = 1
LAST_PAGE: Final = 2
RESP_SUCCESS: Final = 0
RESP_INVALID: Final = 1
RESP_FAILURE: Final = 2


@dataclass(frozen=True, slots=True)
class IopfFault:
    """One page request."""

    addr: int
    perm: int
    grpid: int = 0
    pasid: int = IOMMU_NO_PASID
    flags: int = LAST_PAGE


class IopfGroup:
    """Requests that are answered together; ``handle`` is that of the attachment they came through."""

    __slots__ = ("answered", "cookie", "dev", "faults", "handle")

    def __init__(self, dev: Device, faults: list[IopfFault], handle: object) -> None:
        self.dev: Final = dev
        self.faults: Final = faults
        self.handle: Final = handle
        self.cookie = 0
        self.answered = False

    def respond(self, code: int) -> None:
        """iopf_group_response: tell the device.  Twice is a WARN."""
        printk = self.dev.kernel.printk
        if printk.warn_on(self.answered, f"{self.dev.name}: page request group answered twice"):
            return
        self.answered = True
        _respond(self.dev, self.faults[-1], code)


class IopfQueue:
    """Requests of one device whose last page has not come yet (iommu_fault_param)."""

    __slots__ = ("partial",)

    def __init__(self) -> None:
        self.partial: list[IopfFault] = []


Handler = Callable[[IopfGroup], int]


def _respond(dev: Device, fault: IopfFault, code: int) -> None:
    ops = dev_iommu_ops(dev)
    if ops is not None and ops.page_response is not None:
        ops.page_response(dev, fault, code)


def iommu_report_device_fault(dev: Device, queue: IopfQueue, fault: IopfFault) -> int:
    """A driver reports a page request; 0, or -errno after the device has been answered INVALID or FAILURE."""
    group, ops = dev.iommu_group, dev_iommu_ops(dev)
    if group is None or ops is None:
        return -ENODEV
    pasid = fault.pasid if fault.flags & PASID_VALID else IOMMU_NO_PASID
    ret, handle = iommu_attach_handle_get(group, pasid)
    if ret and pasid != IOMMU_NO_PASID and ops.user_pasid_table:
        pasid = IOMMU_NO_PASID  # the table of PASIDs is user space's
        ret, handle = iommu_attach_handle_get(group, pasid, IOMMU_DOMAIN_NESTED)
    domain = None if ret else group.pasid_array[pasid][0]
    if domain is None or domain.iopf_handler is None:
        _respond(dev, fault, RESP_INVALID)
        return -EINVAL
    if not fault.flags & LAST_PAGE:
        if not dev.kernel.kzalloc("iopf_fault"):
            return -ENOMEM
        queue.partial.append(fault)
        return 0
    mine = [part for part in queue.partial if part.grpid == fault.grpid]
    queue.partial = [part for part in queue.partial if part.grpid != fault.grpid]
    if not dev.kernel.kzalloc("iopf_group"):
        _respond(dev, fault, RESP_FAILURE)
        return -ENOMEM
    made = IopfGroup(dev, [*mine, fault], handle)
    ret = domain.iopf_handler(made)
    if ret:
        made.respond(RESP_FAILURE)
    return ret
