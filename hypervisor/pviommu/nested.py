# SPDX-License-Identifier: GPL-2.0-or-later
"""alloc_nested, flush_nested, query_device and next_fault: tables that a guest owns, under Xen's.

Experimental (:mod:`abi.x1`).  Hardware reads the guest's table through the parent context, so whatever the guest writes
into it, and whenever, its devices reach what the parent maps and nothing else.  Xen reads none of it.  What Xen checks
is that the table's frames are mapped in the parent when the context is made, and it holds a reference on them.
"""

from typing import TYPE_CHECKING

from abi.errno import E2BIG, EFAULT, EINVAL, ENODEV, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP
from abi.x1 import MOST_COMMANDS
from hypervisor.domain import Domain, Vcpu
from hypervisor.frames import REF
from hypervisor.iommu.context import IommuContext, NestedTable
from hypervisor.iommu.nesting import nesting_of, route_faults
from hypervisor.pviommu.result import Result

if TYPE_CHECKING:
    from hypervisor.xen import Xen


def alloc_nested(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """A context whose first stage is the guest's table at ``pgtable_gfn`` of context ``ctx_no``, which it goes through.

    -EOPNOTSUPP where no unit has a first stage, -ENOENT for an unknown parent, -EINVAL for a nested or dying one, for
    flags that no unit has, for a table that is not aligned to its size,
    and for a table that the parent does not map, -ENOSPC, -ENOMEM.
    """
    parent_number, first, flags = args
    iommu, nesting = domain.iommu, nesting_of(xen.backend)
    assert iommu is not None
    if nesting is None:
        return -EOPNOTSUPP, (parent_number,)
    parent = iommu.get(parent_number)
    if parent is None:
        return -ENOENT, (parent_number,)
    size = nesting.table_bytes(flags)
    if parent.parent is not None or parent.dying or parent.table is None or not size or (first << 12) % size:
        return -EINVAL, (parent_number,)
    number = iommu.free_number()
    if number is None:
        return -ENOSPC, (parent_number,)
    frames = _frames_of(xen, parent, first, (size + 4095) >> 12)
    if frames is None:
        return -EINVAL, (parent_number,)
    if not xen.xmalloc("context"):
        return -ENOMEM, (parent_number,)
    assert iommu.arena is not None
    if not xen.xmalloc("context"):
        return -ENOMEM, (parent_number,)
    context = IommuContext(number, iommu.arena, parent=parent, nested=NestedTable(first << 12, flags, frames))
    error = xen.backend.context_init(context)
    if error:
        return error, (parent_number,)
    for mfn in frames:
        xen.frames.get(mfn, 1, REF)
    parent.children += 1
    iommu.contexts[number] = context
    return 0, (number,)


def _frames_of(xen: "Xen", parent: IommuContext, first: int, count: int) -> tuple[int, ...] | None:
    """The RAM behind ``count`` device frames of ``parent``, ``None`` unless each is mapped readable."""
    assert parent.table is not None
    if first + count - 1 > xen.max_dfn:
        return None
    found = []
    for dfn in range(first, first + count):
        leaf = parent.table.lookup(dfn)
        if leaf is None or not xen.backend.format.readable(leaf[1]) or leaf[0] >= xen.frames.frames:
            return None
        found.append(leaf[0])
    return tuple(found)


def flush_nested(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """Carry out the guest's invalidations, in order, until one fails; ``done`` counts them.

    -E2BIG for too many, -ENOENT for an unknown context, -EINVAL for one that is not nested or for a command that is
    not the guest's to give, -EFAULT, -EIO.
    """
    number, count, commands, _ = args
    iommu, nesting = domain.iommu, nesting_of(xen.backend)
    assert iommu is not None
    if nesting is None:
        return -EOPNOTSUPP, (0,)
    if count > MOST_COMMANDS:
        return -E2BIG, (0,)
    context = iommu.contexts.get(number)
    if context is None:
        return -ENOENT, (0,)
    if context.parent is None or context.dying:
        return -EINVAL, (0,)
    raw = vcpu.memory.read(commands, 16 * count) if count else b""
    if raw is None:
        return -EFAULT, (0,)
    words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
    error, done = nesting.invalidate(context, list(zip(words[::2], words[1::2])))
    return error, (done,)


def query_device(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """What the unit in front of one of the caller's devices can do; -ENODEV."""
    device = xen.find_device(domain, args[0] << 16 | args[1] << 8 | args[2])
    nesting = nesting_of(xen.backend)
    if device is None:
        return -ENODEV, (0,) * 7
    enforces = getattr(xen.backend, "enforces_cache", None)
    flags = xen.abi.value_of["IOMMU_DEV_enforce_cache"] if enforces is not None and enforces(device) else 0
    if nesting is None:
        return 0, (flags, 0, 0, 0, 0, 0, 0)
    features = nesting.features(device)
    flags |= xen.abi.value_of["IOMMU_DEV_nested"] if features.format else 0
    return 0, (flags, features.format, features.pasid_bits, *features.info)


def next_fault(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """The oldest fault of the caller's own stage; -ENOENT if none waits."""
    iommu = domain.iommu
    assert iommu is not None
    route_faults(xen)
    lost, iommu.faults_lost = iommu.faults_lost, 0
    if not iommu.faults:
        iommu.faults_lost = lost
        return -ENOENT, (0,) * 8
    fault = iommu.faults.pop(0)
    flags = 0 if fault.write else xen.abi.value_of["IOMMU_FAULT_read"]
    flags |= 0 if fault.pasid is None else xen.abi.value_of["IOMMU_FAULT_pasid"]
    sbdf = fault.sbdf
    device = (sbdf >> 16, sbdf >> 8 & 0xFF, sbdf & 0xFF)
    return 0, (*device, flags, fault.pasid or 0, fault.code, fault.address, lost)
