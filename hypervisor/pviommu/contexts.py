# SPDX-License-Identifier: GPL-2.0-or-later
"""query_capabilities, init, alloc_context, free_context and reattach_device."""

from typing import TYPE_CHECKING, Final

from abi.errno import E2BIG, EACCES, EBUSY, EINVAL, ENODEV, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP
from base.units import CtxNo
from hypervisor.domain import Domain, Vcpu
from hypervisor.frames import DOMID_XEN, REF
from hypervisor.iommu.context import IommuContext
from hypervisor.iommu.moves import move_device
from hypervisor.iommu.nesting import nesting_of
from hypervisor.iommu.pasids import move_pasid
from hypervisor.pagetable.radix import Changes
from hypervisor.pviommu.pasids import offered_pasids, reattach_pasid
from hypervisor.pviommu.result import RESTART, Result

if TYPE_CHECKING:
    from hypervisor.xen import Xen

MAX_CONTEXTS: Final = 0xFFFE
"""Context numbers are 16 bits; 0 is the default context and 0xFFFF means none."""
TEARDOWN_LEAVES: Final = 1024
"""Leaves removed between two looks at whether the vCPU should yield."""


def query_capabilities(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """What this hypervisor offers the caller."""
    assert domain.iommu is not None
    flags = xen.abi.caps.get("default_identity", 0) if domain.hardware and xen.options.dma else 0
    if xen.abi.offers("alloc_nested") and nesting_of(xen.backend) is not None:
        flags |= xen.abi.caps["nested"]
    pasids = offered_pasids(xen)
    max_pasid = 0
    if pasids is not None:
        flags |= xen.abi.caps["pasid"]
        max_pasid = (1 << pasids.pasid_bits) - 1
    return 0, (
        xen.backend.max_iova,
        flags | xen.abi.caps.get("cache", 0) | xen.abi.caps.get("deferred_flush", 0),
        xen.pgsize_mask,
        max_pasid,
        domain.iommu.limit,
        xen.abi.max_nr_pages or 0,
    )


def init(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """Set PV-IOMMU up for the caller: how many contexts, how large an arena.

    -E2BIG for more contexts than 16 bits can number, -EACCES when it was done before, -ENOMEM without a block of
    2^``arena_order`` frames; a refused call leaves the domain as it was, so that another may follow.
    """
    max_ctx_no, arena_order = args
    iommu = domain.iommu
    assert iommu is not None
    if domain.dying:
        return -xen.abi.errno_unusable, ()
    if max_ctx_no > MAX_CONTEXTS:
        return -E2BIG, ()
    if iommu.initialised:
        return -EACCES, ()
    return set_up(xen, domain, max_ctx_no, arena_order), ()


def set_up(xen: "Xen", domain: Domain, contexts: int, arena_order: int) -> int:
    """Reserve the arena and open ``contexts`` numbers; ``arena_order`` 0 is an arena of one page."""
    iommu = domain.iommu
    assert iommu is not None
    if arena_order >= xen.frames.frames.bit_length():
        return -ENOMEM
    if 1 << arena_order > iommu.arena_pages:
        return -ENOMEM
    if not xen.xmalloc("context table"):
        return -ENOMEM
    base = xen.frames.allocate(DOMID_XEN, arena_order)
    if base is None:
        return -ENOMEM
    arena = xen.new_arena(domain, base, 1 << arena_order)
    if arena is None:
        xen.frames.put(base, 1 << arena_order, REF)
        return -ENOMEM
    iommu.arena = arena
    iommu.limit = contexts
    iommu.initialised = True
    return 0


def alloc_context(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """A new, empty context under the lowest free number."""
    number_in, flags = args
    iommu = domain.iommu
    assert iommu is not None
    if flags & ~xen.abi.alloc_flags_mask:
        return -EINVAL, (number_in,)
    if flags & xen.abi.alloc_identity:
        return -EOPNOTSUPP, (number_in,)
    number = iommu.free_number()
    if number is None:
        return -ENOSPC, (number_in,)
    assert iommu.arena is not None
    if not xen.xmalloc("context"):
        return -ENOMEM, (number_in,)
    context = IommuContext(number, iommu.arena, enforces_cache=bool(flags & xen.abi.alloc_cache))
    error = xen.backend.context_init(context)
    if error:
        return error, (number_in,)
    iommu.contexts[number] = context
    return 0, (number,)


def free_context(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """Tear a context down; with the flag, devices in it go back to the default context first.

    Preemptible: a call that is issued again finds the context dying and goes on with its tables.
    """
    number, flags = args
    iommu = domain.iommu
    assert iommu is not None
    if flags & ~xen.abi.free_flags_mask or number == 0:
        return -EINVAL, ()
    context = iommu.contexts.get(number)
    if context is None:
        return -ENOENT, ()
    if context.children or ((context.devices or context.pasids) and not flags & xen.abi.free_reattach_default):
        return -EBUSY, ()
    for device, pasid in context.pasids[:]:
        error = move_pasid(xen, device, pasid, None)
        if error:
            return error, ()
    for device in context.devices[:]:
        error = move_device(xen, domain, device, iommu.default)
        if error:
            return error, ()
    context.dying = True
    preempt = xen.preempt
    empty = False
    while not empty:
        empty, error = tear_down_some(xen, domain, context)
        if error:
            return error, ()
        if not empty and preempt is not None and preempt(vcpu):
            vcpu.restart = (0,)
            return RESTART, ()
    error = xen.forget_context(context)
    if error:
        return error, ()
    del iommu.contexts[CtxNo(number)]
    return 0, ()


def tear_down_some(xen: "Xen", domain: Domain, context: IommuContext) -> tuple[bool, int]:
    """Remove some leaves of a dying context: (whether none is left, errno of the flush)."""
    if context.table is None:
        return True, 0
    changes = Changes()
    empty = context.table.empty_some(TEARDOWN_LEAVES, changes)
    return empty, xen.finish_teardown_pass(domain, context, changes)


def reattach_device(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """Move one of the caller's devices into another of its contexts, 0 included; nothing if it is there already, and
    not cut off."""
    number, segment, bus, devfn, pasid = args
    iommu = domain.iommu
    assert iommu is not None
    if pasid and offered_pasids(xen) is None:
        return -EOPNOTSUPP, ()
    device = xen.find_device(domain, segment << 16 | bus << 8 | devfn)
    if device is None:
        return -ENODEV, ()
    context = iommu.get(number)
    if context is None:
        return -ENOENT, ()
    if pasid:
        return reattach_pasid(xen, device, pasid, context), ()
    if context.dying and device.context is not context:
        return -EINVAL, ()
    return move_device(xen, domain, device, context), ()
