# SPDX-License-Identifier: GPL-2.0-or-later
"""alloc_context, free_context and reattach_device in steps that defects replace.

Left alone it answers as :mod:`hypervisor.pviommu.contexts` does.
"""

from typing import TYPE_CHECKING, Final

from abi.errno import EBUSY, EINVAL, ENODEV, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP
from base.units import CtxNo
from hypervisor.domain import Domain, Vcpu
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.iommu.moves import move_device
from hypervisor.pviommu.contexts import tear_down_some
from hypervisor.pviommu.result import RESTART, Result

if TYPE_CHECKING:
    from hypervisor.xen import Xen


class ContextOps:
    """The sub-ops that make, destroy and fill contexts."""

    def __init__(self, xen: "Xen") -> None:
        self.xen: Final = xen
        self.errno_no_device = ENODEV

    # ------------------------------------------------------------------------------------------- sub-ops

    def alloc_context(self, xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        number_in, flags = args
        iommu = domain.iommu
        assert iommu is not None
        error = self.alloc_flags(flags)
        if error:
            return error, (number_in,)
        number = self.free_number(domain)
        if number is None:
            return -ENOSPC, (number_in,)
        assert iommu.arena is not None
        context = IommuContext(number, iommu.arena)
        self.claim(domain, context)
        error = xen.backend.context_init(context) if xen.xmalloc("context") else -ENOMEM
        if error:
            self.alloc_failed(domain, number)
            return error, (number_in,)
        iommu.contexts[number] = context
        self.claimed(domain, context)
        return 0, (number,)

    def free_context(self, xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        number, flags = args
        iommu = domain.iommu
        assert iommu is not None
        if not self.free_flags(flags) or number == 0:
            return -EINVAL, ()
        context = iommu.contexts.get(number)
        if context is None:
            return -ENOENT, ()
        self.free_begins(context)
        if context.devices and not flags & xen.abi.free_reattach_default:
            return -EBUSY, ()
        error = self.move_all(domain, context)
        if error:
            return error, ()
        context.dying = True
        return self.tear_down(vcpu, domain, context), ()

    def reattach_device(self, xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        number, segment, bus, devfn, pasid = args
        iommu = domain.iommu
        assert iommu is not None
        if pasid and not self.ignores_pasid():
            return -EOPNOTSUPP, ()
        device = xen.find_device(domain, segment << 16 | bus << 8 | devfn)
        if device is None:
            return -self.errno_no_device, ()
        context = iommu.get(number)
        if context is None:
            return -ENOENT, ()
        if self.in_place(device, context):
            return 0, ()
        if context.dying:
            return -EINVAL, ()
        return self.move(domain, device, context), ()

    # ---------------------------------------------------------------------------------- steps to replace

    def alloc_flags(self, flags: int) -> int:
        """0, or the errno for flags that are refused."""
        if flags & ~self.xen.abi.alloc_flags_mask:
            return -EINVAL
        return -EOPNOTSUPP if flags & self.xen.abi.alloc_identity else 0

    def free_flags(self, flags: int) -> bool:
        return not flags & ~self.xen.abi.free_flags_mask

    def ignores_pasid(self) -> bool:
        return False

    def free_number(self, domain: Domain) -> CtxNo | None:
        assert domain.iommu is not None
        return domain.iommu.free_number()

    def claim(self, domain: Domain, context: IommuContext) -> None:
        """A number was found, and its context is about to be made."""

    def claimed(self, domain: Domain, context: IommuContext) -> None:
        """The context is made."""

    def alloc_failed(self, domain: Domain, number: int) -> None:
        """The backend could not make the context with that number."""

    def free_begins(self, context: IommuContext) -> None:
        """Before it is looked at whether devices are in the context."""

    def move_all(self, domain: Domain, context: IommuContext) -> int:
        """Put the context's devices back into the default one."""
        assert domain.iommu is not None
        for device in context.devices[:]:
            error = self.move(domain, device, domain.iommu.default)
            if error:
                return error
        return 0

    def in_place(self, device: PciDevice, context: IommuContext) -> bool:
        """Whether there is nothing to do, not even to ask whether the context is dying."""
        return device.context is context

    def move(self, domain: Domain, device: PciDevice, target: IommuContext) -> int:
        return move_device(self.xen, domain, device, target)

    def tear_down(self, vcpu: Vcpu, domain: Domain, context: IommuContext) -> int:
        """Empty the context and give up its number; 0, an errno, or RESTART."""
        empty = False
        self.before_tear_down(context)
        while not empty:
            empty, error = tear_down_some(self.xen, domain, context)
            if error:
                return error
            if not empty and self.yields(vcpu):
                vcpu.restart = (0,)
                return RESTART
        self.xen.release_context(context)
        self.forget(domain, context)
        return 0

    def yields(self, vcpu: Vcpu) -> bool:
        """Whether the vCPU is wanted elsewhere."""
        return self.xen.preempt is not None and self.xen.preempt(vcpu)

    def before_tear_down(self, context: IommuContext) -> None:
        """Nothing of the context has gone yet."""

    def forget(self, domain: Domain, context: IommuContext) -> None:
        assert domain.iommu is not None
        del domain.iommu.contexts[context.number]
