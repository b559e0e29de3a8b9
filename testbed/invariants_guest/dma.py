# SPDX-License-Identifier: GPL-2.0-or-later
"""Invariants 38 to 42: the DMA API and its IOVAs."""

from collections.abc import Iterator

from guest_driver.linux.iommu import IommuDomain
from testbed.invariants_guest.registry import invariant
from testbed.validate.record import Step
from testbed.validate.world import World


@invariant(38, "dma_map answers an IOVA inside every limit, size-aligned, that overlaps nothing live or reserved")
def iova_is_free_and_reachable(world: World, step: Step) -> Iterator[str]:
    if step.name != "dma-map" or step.failed or step.domain is None:
        return
    dev, address, size = step.details["device"], step.details["address"], step.details["size"]
    cookie = step.domain.cookie
    if not dev.dma_iommu or cookie is None or cookie.iovad is None:
        return
    limit = min(dev.dma_mask, step.domain.aperture_last, dev.bus_dma_limit or dev.dma_mask)
    if address + size - 1 > limit:
        yield f"{address:#x} lies beyond the device's limit {limit:#x}"
    first, last = address >> 12, address + size - 1 >> 12
    if first & (1 << (last - first).bit_length()) - 1:
        yield f"{address:#x} is not aligned to its size {size:#x}"
    for low, high in cookie.iovad.reserved_ranges():
        if first <= high and low <= last:
            yield f"{address:#x} lies in the reservation {low << 12:#x}"
    for low, high in step.before.live_iovas.get(step.domain, ()):
        if first <= high and low <= last:
            yield f"{address:#x} overlaps the live range {low << 12:#x}"


@invariant(39, "when everything is unmapped the domain is empty and no IOVA is in use")
def all_unmapped_is_empty(world: World, step: Step) -> Iterator[str]:
    if (
        step.name not in ("dma-unmap", "dma-unsg", "dma-free")
        or step.domain is None
        or step.injected
        or _held(world, step.domain)
    ):
        return
    if step.domain.cookie is not None and step.domain.cookie.fq is not None:
        return  # the flush that is waited for may be what unmaps
    doorbells = _doorbells(step.domain)
    live = [pfn for pfn, _ in step.after.live_iovas.get(step.domain, ()) if pfn not in doorbells]
    if live:
        yield f"IOVA {live[0] << 12:#x} is still in use"
    left = step.after.mappings.get(step.domain, {}).keys() - doorbells
    if left:
        yield f"dfn {min(left):#x} is still mapped"


def _held(world: World, domain: IommuDomain) -> bool:
    devices = [dev for dev, _, _ in world.dma.values()]
    devices += [dev for dev, _ in world.lists.values()] + [buffer.dev for buffer in world.coherent.values()]
    return any(dev.iommu_group is not None and dev.iommu_group.default_domain is domain for dev in devices)


def _doorbells(domain: IommuDomain) -> set[int]:
    return set() if domain.cookie is None else {iova >> 12 for _, iova, _ in domain.cookie.msi_pages}


@invariant(40, "segments of dma_map_sg respect size and boundary, and cover all bytes in order")
def segments_fit(world: World, step: Step) -> Iterator[str]:
    if step.name != "dma-sg" or step.failed:
        return
    dev, entries = step.details["device"], step.details["entries"]
    segments = [(e.dma_address, e.dma_length) for e in entries[: step.details["segments"]]]
    if sum(length for _, length in segments) != sum(entry.length for entry in entries):
        yield "the segments do not add up to the list"
    for address, length in segments:
        if length > dev.max_seg_size:
            yield f"a segment of {length:#x} bytes, the device takes {dev.max_seg_size:#x}"
        if (address & dev.seg_boundary_mask) + length > dev.seg_boundary_mask + 1:
            yield f"the segment at {address:#x} crosses the boundary {dev.seg_boundary_mask:#x}"
    if dev.dma_iommu:
        yield from _in_order(world, step, segments)


def _in_order(world: World, step: Step, segments: list[tuple[int, int]]) -> Iterator[str]:
    table = step.after.mappings.get(step.domain, {}) if step.domain is not None else {}
    offsets = [0]
    for _, length in segments:
        offsets.append(offsets[-1] + length)
    at = 0
    for entry in step.details["entries"]:
        index = max(i for i, start in enumerate(offsets[:-1]) if start <= at)
        iova = segments[index][0] + at - offsets[index]
        page = table.get(iova >> 12)
        if page is None or page[0] != world.mfn(entry.paddr >> 12) or (iova ^ entry.paddr) & 0xFFF:
            yield f"byte {at} of the list is not at {iova:#x}"
            return
        at += entry.length


@invariant(41, "a mapping that fails gives its IOVA back")
def failed_map_frees_iova(world: World, step: Step) -> Iterator[str]:
    if step.name in ("dma-map", "dma-sg") and step.failed and step.domain is not None:
        before, after = (view.live_iovas.get(step.domain, ()) for view in (step.before, step.after))
        if before != after:
            yield f"{len(after) - len(before)} IOVA ranges are lost"


@invariant(42, "a doorbell is mapped once per domain, for all its devices")
def doorbell_is_mapped_once(world: World, step: Step) -> Iterator[str]:
    if world.kernel is None:
        return
    for domain in world.kernel.iommu.domains:
        if domain.cookie is not None:
            pages = [paddr for paddr, _, _ in domain.cookie.msi_pages]
            if len(set(pages)) != len(pages):
                yield "a doorbell has two addresses in one domain"
