# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls that programs are made of: what each does to a world, and how it is recorded.

A call answers 0 or a count, or -errno; a guest kernel that dies and a hypervisor that dies are exceptions that the
runner turns into findings.
"""

from __future__ import annotations

from typing import Any, Final

from abi.errno import EINVAL, ENODEV
from guest_driver.linux.dd import device_driver_attach, device_release_driver
from guest_driver.linux.dma_iommu import DMA_BIDIRECTIONAL, DMA_MAPPING_ERROR
from guest_driver.linux.iommu import IOMMU_CAP_CACHE_COHERENCY
from guest_driver.linux.iommu_attach import (
    iommu_attach_device,
    iommu_attach_group,
    iommu_detach_group,
)
from guest_driver.linux.iommu_core import device_iommu_capable, iommu_domain_free, iommu_paging_domain_alloc
from guest_driver.linux.iommu_default_domain import iommu_group_store_type
from guest_driver.linux.iommu_map import iommu_iova_to_phys, iommu_map, iommu_map_sg, iommu_unmap
from guest_driver.linux.iommu_owner import iommu_group_claim_dma_owner, iommu_group_release_dma_owner
from guest_driver.linux.iommu_resv import iommu_get_resv_regions
from guest_driver.linux.scatterlist import Scatterlist
from guest_driver.xen_iommu import XenIommuDomain
from testbed.validate import calls_pasid
from testbed.validate.calling import CALLS, named, named_domain
from testbed.validate.faults import Fault
from testbed.validate.record import Step
from testbed.validate.world import World

__all__ = ["CALLS", "calls_pasid", "perform"]

PAGE: Final = 4096
OWNER: Final = "user space"
_PROT: Final = {"r": 1, "w": 2, "rw": 3, "rwc": 7, "none": 0}


def perform(world: World, name: str, args: tuple[Any, ...]) -> Step:
    """Carry a call out and record it."""
    step = Step(name, args)
    world.begin(step)
    try:
        step.result = CALLS[name](world, step, *args)
    finally:
        world.end()
    return step


@named("boot")
def _boot(world: World, step: Step, mode: str = "dma") -> int:
    return world.boot(passthrough=mode == "passthrough")


@named("one-group")
def _one_group(world: World, step: Step) -> int:
    world.one_group = True
    return 0


@named("fail")
def _fail(world: World, step: Step, subop: str, errno: int, page: int = 0, skip: int = 0, times: int = 1) -> int:
    world.faults.faults.append(Fault(subop, errno, page, skip, times))
    return 0


@named("no-memory")
def _no_memory(world: World, step: Step) -> int:
    world.booted.kernel.slab_fault = lambda purpose: True
    return 0


@named("no-arena")
def _no_arena(world: World, step: Step) -> int:
    """Others take what is left of the arena; how many pages that was."""
    iommu = world.testbed.dom0.iommu
    if iommu is None or iommu.arena is None:
        return 0
    taken = 0
    while iommu.arena.allocate() is not None:
        taken += 1
    return taken


@named("no-cache-cap")
def _no_cache_cap(world: World, step: Step) -> int:
    world.faults.hidden_caps |= world.testbed.xen.abi.caps.get("cache", 0)
    return 0


@named("no-contexts")
def _no_contexts(world: World, step: Step) -> int:
    world.faults.overrides["max_ctx_no"] = 0
    return 0


@named("alloc")
def _alloc(world: World, step: Step, number: int, device: str) -> int:
    domain = iommu_paging_domain_alloc(world.device(device))
    if isinstance(domain, int):
        return domain
    assert isinstance(domain, XenIommuDomain)
    world.domains[number] = step.domain = domain
    return 0


@named("fill")
def _fill(world: World, step: Step, device: str) -> int:
    """Allocate domains, beside those of an earlier time, until there are no more contexts; the errno that ended it."""
    number = max(world.domains, default=0) + 1000
    while True:
        ret = _alloc(world, step, number, device)
        if ret:
            return 0 if ret in world_exhausted else ret
        number += 1


world_exhausted: Final = (-28, -12)
"""What running out may look like: -ENOSPC for context numbers, -ENOMEM for the arena."""


@named("free")
def _free(world: World, step: Step, number: int) -> int:
    domain = named_domain(world, step, number)
    if domain is None:
        return -EINVAL
    iommu_domain_free(domain)
    del world.domains[number]
    return 0


@named("attach")
def _attach(world: World, step: Step, number: int, device: str) -> int:
    domain = named_domain(world, step, number)
    dev = world.device(device)
    if domain is None or dev.iommu_group is None:
        return -ENODEV
    step.details["group"] = dev.iommu_group
    if len(dev.iommu_group.devices) == 1:
        return iommu_attach_device(domain, dev)
    return iommu_attach_group(domain, dev.iommu_group)


@named("attach-device")
def _attach_device(world: World, step: Step, number: int, device: str) -> int:
    domain = named_domain(world, step, number)
    dev = world.device(device)
    step.details["group"] = dev.iommu_group
    return -ENODEV if domain is None else iommu_attach_device(domain, dev)


@named("detach")
def _detach(world: World, step: Step, number: int, device: str) -> int:
    domain = named_domain(world, step, number)
    group = world.device(device).iommu_group
    if domain is None or group is None or group.domain is not domain:
        return -EINVAL
    iommu_detach_group(domain, group)
    return 0


@named("map")
def _map(world: World, step: Step, number: int, iova: int, frames: str, pages: int, prot: str = "rw") -> int:
    """Map ``pages`` pages from the frames of a kind (see ``World.frames``; ``near+3``: beginning with the fourth)."""
    domain = named_domain(world, step, number)
    if domain is None:
        return -EINVAL
    kind, _, offset = frames.partition("+")
    pfn = world.frames(kind, pages) + int(offset or 0)
    step.details.update(iova=iova, pfn=pfn, size=pages * PAGE, prot=_PROT[prot])
    return iommu_map(domain, iova, pfn * PAGE, pages * PAGE, _PROT[prot])


@named("map-bytes")
def _map_bytes(world: World, step: Step, number: int, iova: int, paddr: int, size: int) -> int:
    domain = named_domain(world, step, number)
    if domain is None:
        return -EINVAL
    step.details.update(iova=iova, paddr=paddr, size=size)
    return iommu_map(domain, iova, paddr, size, 3)


@named("map-sg")
def _map_sg(world: World, step: Step, number: int, iova: int, *pieces: str) -> int:
    """Map a list; each piece is ``pfn:pages``, the pfn counted from the first of the near frames."""
    domain = named_domain(world, step, number)
    if domain is None:
        return -EINVAL
    entries = []
    base = world.frames("near", 1)
    for piece in pieces:
        pfn, _, pages = piece.partition(":")
        entries.append(Scatterlist((base + int(pfn)) * PAGE, int(pages) * PAGE))
    step.details.update(iova=iova, pieces=[(entry.paddr, entry.length) for entry in entries])
    return iommu_map_sg(domain, iova, entries, 3)


@named("unmap")
def _unmap(world: World, step: Step, number: int, iova: int, pages: int) -> int:
    domain = named_domain(world, step, number)
    if domain is None:
        return -EINVAL
    step.details.update(iova=iova, size=pages * PAGE)
    return iommu_unmap(domain, iova, pages * PAGE)


@named("phys")
def _phys(world: World, step: Step, number: int, iova: int) -> int:
    domain = named_domain(world, step, number)
    step.details["iova"] = iova
    return 0 if domain is None else iommu_iova_to_phys(domain, iova)


@named("touch")
def _touch(world: World, step: Step, device: str, iova: int, pages: int) -> int:
    """The device reads every page, which fills the caches; how many it reaches."""
    sbdf = world.device(device).pci.sbdf
    return sum(world.dma_reaches(sbdf, iova + page * PAGE) is not None for page in range(pages))


@named("claim")
def _claim(world: World, step: Step, device: str, owner: str = OWNER) -> int:
    group = world.device(device).iommu_group
    step.details["group"] = group
    return -ENODEV if group is None else iommu_group_claim_dma_owner(group, owner)


@named("release")
def _release(world: World, step: Step, device: str) -> int:
    group = world.device(device).iommu_group
    step.details["group"] = group
    if group is None or group.owner is None:
        return -EINVAL
    iommu_group_release_dma_owner(group)
    return 0


@named("bind")
def _bind(world: World, step: Step, device: str) -> int:
    dev = world.device(device)
    step.details["group"] = dev.iommu_group
    return device_driver_attach(dev, "driver")


@named("unbind")
def _unbind(world: World, step: Step, device: str) -> int:
    dev = world.device(device)
    step.details["group"] = dev.iommu_group
    device_release_driver(dev)
    return 0


@named("unplug")
def _unplug(world: World, step: Step, device: str) -> int:
    dev = world.device(device)
    step.details["device"] = dev
    ret = world.hotplug(dev.pci, "remove")
    if not ret:
        world.unplugged[device] = dev
        step.details["where"] = world.context_of(dev.pci.sbdf)
        world.pulled_out(dev)
    return ret


@named("plug")
def _plug(world: World, step: Step, device: str) -> int:
    dev = world.unplugged.pop(device, None)
    return -EINVAL if dev is None else world.hotplug(dev.pci, "add")


@named("type")
def _type(world: World, step: Step, device: str, text: str) -> int:
    group = world.device(device).iommu_group
    step.details["group"] = group
    return -ENODEV if group is None else iommu_group_store_type(group, text)


@named("coherent")
def _coherent(world: World, step: Step, device: str) -> int:
    """capable(CACHE_COHERENCY)."""
    return int(device_iommu_capable(world.device(device), IOMMU_CAP_CACHE_COHERENCY))


@named("regions")
def _regions(world: World, step: Step, device: str) -> int:
    """How many reserved regions the device has."""
    step.details["regions"] = iommu_get_resv_regions(world.device(device))
    return len(step.details["regions"])


@named("dma-map")
def _dma_map(world: World, step: Step, slot: int, device: str, size: int) -> int:
    """Map the first bytes of the near frames with the DMA API."""
    dev = world.device(device)
    pfn = world.frames("near", 1)
    address = world.booted.dma.map_page(dev, pfn, 0, size, DMA_BIDIRECTIONAL)
    step.details.update(device=dev, address=address, size=size, pfn=pfn)
    step.domain = None if dev.iommu_group is None else dev.iommu_group.default_domain
    if address == DMA_MAPPING_ERROR:
        return -12
    world.dma[slot] = dev, address, size
    return 0


@named("dma-unmap")
def _dma_unmap(world: World, step: Step, slot: int) -> int:
    if slot not in world.dma:
        return -EINVAL
    dev, address, size = world.dma.pop(slot)
    step.details.update(device=dev, address=address, size=size)
    step.domain = None if dev.iommu_group is None else dev.iommu_group.default_domain
    world.booted.dma.unmap_page(dev, address, size, DMA_BIDIRECTIONAL)
    return 0


@named("dma-sg")
def _dma_sg(world: World, step: Step, slot: int, device: str, *pieces: str) -> int:
    """Map a list with the DMA API; each piece is ``pfn+offset:bytes``."""
    dev = world.device(device)
    base = world.frames("near", 1)
    entries = []
    for piece in pieces:
        where, _, length = piece.partition(":")
        pfn, _, offset = where.partition("+")
        entries.append(Scatterlist((base + int(pfn)) * PAGE + int(offset or 0), int(length)))
    step.domain = None if dev.iommu_group is None else dev.iommu_group.default_domain
    count = world.booted.dma.map_sg(dev, entries, DMA_BIDIRECTIONAL)
    step.details.update(device=dev, entries=entries, segments=count)
    if not count:
        return -12
    world.lists[slot] = dev, entries
    return count


@named("dma-unsg")
def _dma_unsg(world: World, step: Step, slot: int) -> int:
    if slot not in world.lists:
        return -EINVAL
    dev, entries = world.lists.pop(slot)
    step.domain = None if dev.iommu_group is None else dev.iommu_group.default_domain
    world.booted.dma.unmap_sg(dev, entries, DMA_BIDIRECTIONAL)
    return 0


@named("shutdown")
def _shutdown(world: World, step: Step) -> int:
    for group in list(world.booted.iommu.groups):
        if group.domain is not None and group.domain in world.domains.values():
            iommu_detach_group(group.domain, group)
    for number in list(world.domains):
        iommu_domain_free(world.domains.pop(number))
    world.booted.shutdown()
    return 0
