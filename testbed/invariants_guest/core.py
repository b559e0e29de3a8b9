# SPDX-License-Identifier: GPL-2.0-or-later
"""Invariants 22 to 37: what the IOMMU core promises to drivers and to its callers."""

from collections.abc import Iterator
from typing import Any

from abi.errno import EBUSY, EINVAL, EPERM, errno_name
from guest_driver.linux.dma_iommu import DMA_MAPPING_ERROR
from guest_driver.linux.iommu import (
    IOMMU_DOMAIN_DMA_API_BIT,
    IOMMU_RESV_DIRECT,
    IommuDevice,
    IommuDomain,
    IommuDomainOps,
    IommuOps,
)
from guest_driver.linux.iommu_map import iommu_iova_to_phys
from guest_driver.linux.iommu_probe import iommu_device_register
from guest_driver.linux.iommu_resv import iommu_get_resv_regions
from guest_driver.linux.kernel import CommandLine, Kernel
from guest_driver.linux.pci_group import pci_device_group
from testbed.invariants_guest.registry import invariant
from testbed.validate.record import GroupState, Step, View
from testbed.validate.world import World

_MAPPING_CALLS = ("map", "map-bytes", "map-sg")


def _group(view: View, group: object) -> GroupState | None:
    return next((state for state in view.groups if state.group is group), None)


@invariant(22, "the page sizes chosen cover a range exactly, aligned, and stop where a bigger page could start")
def pieces_cover(world: World, step: Step) -> Iterator[str]:
    if step.name != "map" or step.failed or step.domain is None:
        return
    at, paddr = step.details["iova"], step.details["pfn"] << 12
    end = at + step.details["size"]
    bitmap = step.domain.pgsize_bitmap
    for op in step.named("map_pages"):
        _, iova, phys, pgsize, count, _, _ = op.args
        if (iova, phys) != (at, paddr):
            yield f"a piece starts at {iova:#x} instead of {at:#x}"
            return
        if pgsize & bitmap != pgsize or (iova | phys) & pgsize - 1:
            yield f"a piece at {iova:#x} has page size {pgsize:#x}"
        bigger = bitmap & ~((pgsize << 1) - 1)
        bigger &= -bigger
        if bigger and not (iova ^ phys) & bigger - 1:
            boundary = iova + (-iova & bigger - 1)
            if boundary + bigger <= end and iova + pgsize * count > boundary:
                yield f"a piece of {pgsize:#x} pages runs over {boundary:#x}, where {bigger:#x} would fit"
        at, paddr = at + op.result[1], paddr + op.result[1]
    if at != end:
        yield f"the pieces end at {at:#x} instead of {end:#x}"


@invariant(23, "a misaligned or non-paging map is -EINVAL without a call of the driver")
def misaligned_is_refused(world: World, step: Step) -> Iterator[str]:
    if step.name != "map-bytes" or step.domain is None:
        return
    smallest = step.domain.pgsize_bitmap & -step.domain.pgsize_bitmap
    if (step.details["iova"] | step.details["paddr"] | step.details["size"]) & smallest - 1:
        if step.result != -EINVAL:
            yield f"a misaligned map answers {errno_name(step.result)}"
        if step.named("map_pages"):
            yield "a misaligned map reached the driver"


@invariant(24, "an error of the driver's map_pages reaches the caller")
def map_error_is_returned(world: World, step: Step) -> Iterator[str]:
    failed = [op.result[0] for op in step.named("map_pages") if op.result[0]]
    if step.name in _MAPPING_CALLS and failed and step.result != failed[0]:
        yield f"map_pages failed ({errno_name(failed[0])}), the caller gets {step.result}"
    refused = [c for c in step.hypercalls if c.name == "map_pages" and c.result < 0]
    if step.name in (*_MAPPING_CALLS, "dma-map") and refused and not step.failed and step.domain is not None:
        # A driver may try again in smaller pieces; what counts is that success means mapped.
        iova = step.details.get("iova", step.details.get("address", DMA_MAPPING_ERROR))
        if iova >> 12 not in step.after.mappings.get(step.domain, {}):
            yield f"the hypervisor refused ({errno_name(refused[0].result)}), the caller is told that it worked"


@invariant(25, "an iotlb_sync_map that fails unmaps the whole range")
def failed_sync_unmaps(world: World, step: Step) -> Iterator[str]:
    if step.domain is None or not any(op.result for op in step.named("iotlb_sync_map")):
        return
    if not step.failed:
        yield "iotlb_sync_map failed, the caller is told that the map worked"
    elif step.before.mappings.get(step.domain) != step.after.mappings.get(step.domain):
        yield "iotlb_sync_map failed, and pages stay mapped"


@invariant(26, "iommu_unmap stops at the first hole with the short count, and never goes on without progress")
def unmap_stops_at_hole(world: World, step: Step) -> Iterator[str]:
    if step.name != "unmap":
        return
    ops = step.named("unmap_pages")
    if any(op.result <= 0 for op in ops[:-1]):
        yield "the driver is called again after an unmap_pages without progress"
    if ops and step.result != sum(max(op.result, 0) for op in ops):
        yield f"iommu_unmap answers {step.result:#x}, the driver {sum(op.result for op in ops):#x}"


@invariant(27, "iommu_unmap ends with an iotlb_sync that covers what was removed, if the driver has one")
def unmap_syncs(world: World, step: Step) -> Iterator[str]:
    if step.name not in ("unmap", "dma-unmap") or step.domain is None or step.domain.ops.iotlb_sync is None:
        return
    removed = [(op.args[1], op.args[1] + op.result) for op in step.named("unmap_pages") if op.result > 0]
    if not removed:
        return
    if step.ops[-1].name != "iotlb_sync":
        yield "pages were removed and nothing was invalidated afterwards"


@invariant(28, "iommu_map_sg translates like its elements mapped one by one, and leaves nothing when it fails")
def sg_is_all_or_nothing(world: World, step: Step) -> Iterator[str]:
    if step.name != "map-sg" or step.domain is None:
        return
    total = sum(length for _, length in step.details["pieces"])
    if not step.failed and step.result != total:
        yield f"iommu_map_sg answers {step.result:#x} for {total:#x} bytes"
        return
    at = step.details["iova"]
    for paddr, length in step.details["pieces"] if not step.failed else ():
        for offset in range(0, length, 4096):
            if iommu_iova_to_phys(step.domain, at + offset) != paddr + offset:
                yield f"iova {at + offset:#x} does not lead to {paddr + offset:#x}"
                return
        at += length


@invariant(29, "a group that cannot move as a whole does not move: earlier devices are back, the error is returned")
def group_moves_together(world: World, step: Step) -> Iterator[str]:
    for state in step.after.groups:
        if len(set(state.contexts)) > 1:
            yield f"group {state.group.id} is spread over contexts {state.contexts}"
    state_before, state_after = (
        _group(step.before, step.details.get("group")),
        _group(step.after, step.details.get("group")),
    )
    if step.name != "attach" or state_before is None or state_after is None:
        return
    failed = [op.result for op in step.named("attach_dev") if op.result]
    if failed and step.result != failed[0]:
        yield f"a device refused ({errno_name(failed[0])}), the caller gets {step.result}"
    if step.failed and (state_before.domain is not state_after.domain or state_before.contexts != state_after.contexts):
        yield f"attach failed ({errno_name(step.result)}) and the group has moved"


@invariant(30, "iommu_attach_device refuses a group of two (-EINVAL), and any attach a foreign domain (-EBUSY)")
def attach_is_exclusive(world: World, step: Step) -> Iterator[str]:
    if step.name not in ("attach", "attach-device"):
        return
    state = _group(step.before, step.details.get("group"))
    if state is None or step.domain is None:
        return
    if step.name == "attach-device" and len(state.members) > 1 and step.result != -EINVAL:
        yield f"a device of a group of {len(state.members)} was attached alone ({step.result})"
    foreign = state.domain not in (state.default, state.group.blocking_domain)
    if foreign and not (step.name == "attach-device" and len(state.members) > 1) and step.result != -EBUSY:
        yield f"a group on somebody's domain took another ({step.result})"


@invariant(31, "claim while drivers are bound is -EPERM, bind while claimed is -EBUSY, release brings the default back")
def ownership_codes(world: World, step: Step) -> Iterator[str]:
    state, after = _group(step.before, step.details.get("group")), _group(step.after, step.details.get("group"))
    if state is None or after is None:
        return
    if step.name == "claim" and state.owner_cnt and step.result != -EPERM:
        yield f"claim of a group in use answers {errno_name(step.result)}"
    if step.name == "bind" and state.owner is not None and step.result != -EBUSY:
        yield f"bind to a claimed group answers {errno_name(step.result)}"
    if step.name == "release" and not step.failed and (after.domain is not after.default or after.owner is not None):
        yield "after the release the group is not on its default domain"
    if step.name == "claim" and step.failed and (after.owner is not state.owner or after.domain is not state.domain):
        yield f"claim failed ({errno_name(step.result)}) and left its traces"


@invariant(32, "while somebody owns its DMA, a group is never on the default domain")
def owned_is_off_default(world: World, step: Step) -> Iterator[str]:
    for state in step.after.groups:
        if state.owner is not None and state.domain is state.default:
            yield f"group {state.group.id} is owned and on its default domain"


@invariant(33, "a device with a DIRECT region cannot be blocked: claim is -EINVAL and the group stays")
def direct_is_not_blocked(world: World, step: Step) -> Iterator[str]:
    for state in step.after.groups:
        direct = any(dev.iommu is not None and dev.iommu.require_direct for dev in state.group.devices)
        blocked = state.domain is not None and state.domain is state.group.blocking_domain
        if direct and blocked:
            yield f"group {state.group.id} has a device with a DIRECT region and is blocked"
        if step.name == "claim" and step.details.get("group") is state.group and direct and step.result != -EINVAL:
            yield f"claim of a group with a DIRECT region answers {errno_name(step.result)}"


@invariant(34, "DIRECT regions are mapped before the first device moves to a DMA domain")
def direct_before_attach(world: World, step: Step) -> Iterator[str]:
    mapped: set[IommuDomain] = set()
    for op in step.ops:
        if op.name == "map_pages":
            mapped.add(op.args[0])
        if op.name != "attach_dev" or not op.args[0].type & IOMMU_DOMAIN_DMA_API_BIT:
            continue
        regions = [r for r in iommu_get_resv_regions(op.args[1]) if r.type == IOMMU_RESV_DIRECT]
        if regions and op.args[0] not in mapped and not iommu_iova_to_phys(op.args[0], regions[0].start):
            yield f"{op.args[1].name} moved before its region at {regions[0].start:#x} was mapped"


@invariant(35, "a PASID call that fails leaves entry and devices as they were; one that succeeds reaches every device")
def pasids_are_all_or_nothing(world: World, step: Step) -> Iterator[str]:
    if step.name not in ("pasid", "pasid-replace", "pasid-detach") or step.details.get("group") is None:
        return
    _, device, pasid = step.args
    group = step.details["group"]
    entries = {number: entry[0] for number, entry in group.pasid_array.items()}
    if step.failed:
        if entries != step.details["entries"]:
            yield f"{step.name} failed ({errno_name(step.result)}), and the group's entries are others than before"
        before = step.details["pasids"]
        for sbdf, number in before.keys() | world.pasids.keys():
            if world.pasids.get((sbdf, number)) is not before.get((sbdf, number)):
                yield f"{step.name} failed ({errno_name(step.result)}), and {sbdf:#x} has PASID {number} otherwise"
        return
    wanted = None if step.name == "pasid-detach" else step.domain
    if entries.get(pasid) is not wanted:
        yield f"{step.name} answers 0, and PASID {pasid} of {device} is not recorded so"
    for dev in group.devices:
        if dev.iommu is not None and dev.iommu.max_pasids and world.pasids.get((dev.pci.sbdf, pasid)) is not wanted:
            yield f"{step.name} answers 0, and {dev.name} does not have PASID {pasid} so"


@invariant(36, "the partition into groups does not depend on the order of probing")
def groups_are_order_free(world: World, step: Step) -> Iterator[str]:
    if step.name != "boot" or step.result or world.one_group or world.kernel is None:
        return
    real = {frozenset(state.members) for state in step.after.groups}
    if frozenset(real) in world.verified_groups:
        return
    covered = frozenset[int]().union(*real) if real else frozenset()
    again = _partition(world, covered)
    if real != again:
        yield f"probed backwards the groups are {sorted(map(sorted, again))} instead of {sorted(map(sorted, real))}"
    else:
        world.verified_groups.add(frozenset(real))


def _partition(world: World, covered: frozenset[int]) -> set[frozenset[int]]:
    """The groups that a driver of nothing gets when the bus is probed from its end."""
    ours = world.booted.kernel
    kernel = Kernel(ours.ram, ours.pci, ours.mmio, CommandLine(passthrough=True))
    kernel.devices.extend(type(dev)(kernel, dev.pci) for dev in reversed(ours.devices))
    identity = IommuDomain(4, IommuDomainOps(attach_dev=lambda domain, dev, old: 0))
    unit = IommuDevice("nothing")

    def probe(dev: Any) -> IommuDevice | int:
        return unit if dev.pci.sbdf in covered else -19

    ops = IommuOps("nothing", probe, pci_device_group, IommuDomainOps(attach_dev=lambda *_: 0))
    ops.identity_domain = identity
    iommu_device_register(kernel, unit, ops)
    return {frozenset(dev.pci.sbdf for dev in group.devices) for group in kernel.iommu.groups}


@invariant(37, "the default domain changes only in an unused group, and a failed change restores the old one")
def type_change_is_safe(world: World, step: Step) -> Iterator[str]:
    if step.name != "type":
        return
    before, after = _group(step.before, step.details.get("group")), _group(step.after, step.details.get("group"))
    if before is None or after is None:
        return
    if before.owner_cnt and before.default is not after.default:
        yield "the default domain of a group in use was exchanged"
    if step.failed and (before.default is not after.default or before.contexts != after.contexts):
        yield f"the change failed ({errno_name(step.result)}) and the old default domain is not back"
