# SPDX-License-Identifier: GPL-2.0-or-later
"""Invariants 1 to 21: the driver against the hypervisor's tables and the hardware that walks them."""

from collections.abc import Iterator

from abi.errno import errno_name
from base.units import PAGE_SHIFT
from guest_driver.linux.flush_queue import FlushQueue
from guest_driver.linux.iommu import (
    IOMMU_CAP_CACHE_COHERENCY,
    IOMMU_DOMAIN_BLOCKED,
    IOMMU_DOMAIN_IDENTITY,
    IOMMU_RESV_MSI,
    IommuDomain,
)
from guest_driver.linux.iommu_core import device_iommu_capable
from guest_driver.linux.iommu_map import iommu_iova_to_phys
from guest_driver.linux.iommu_resv import iommu_get_resv_regions
from testbed.invariants_guest.registry import About, invariant
from testbed.validate.record import OpCall, Step
from testbed.validate.world import World


def _range(op: OpCall) -> tuple[int, int, int]:
    """(first dfn, dfns asked for, bytes asked for) of a map_pages or unmap_pages call."""
    iova = op.args[1]
    pgsize, count = (op.args[3], op.args[4]) if op.name == "map_pages" else (op.args[2], op.args[3])
    return iova >> PAGE_SHIFT, pgsize * count >> PAGE_SHIFT, pgsize * count


@invariant(1, "map_pages: the bytes reported are those that the hypervisor has mapped, for every failure position")
def mapped_is_exact(world: World, step: Step) -> Iterator[str]:
    for op in step.named("map_pages"):
        new = len(op.after.keys() - op.before.keys()) << PAGE_SHIFT
        if op.result[1] != new:
            yield f"map_pages reports {op.result[1]:#x} bytes, the hypervisor has mapped {new:#x}"


@invariant(2, "map over an existing entry fails and leaves that entry unchanged")
def overlap_fails(world: World, step: Step) -> Iterator[str]:
    for op in step.named("map_pages"):
        first, count, _ = _range(op)
        there = [dfn for dfn in range(first, first + count) if dfn in op.before]
        if there and op.result[0] == 0:
            yield f"map_pages over dfn {there[0]:#x}, which is mapped, answers 0"
        for dfn in there:
            if op.after.get(dfn) != op.before[dfn]:
                yield f"map_pages has changed the entry of dfn {dfn:#x}"


@invariant(3, "after a failed iommu_map the domain translates exactly as before, if the unmap that undoes it works")
def failed_map_leaves_nothing(world: World, step: Step) -> Iterator[str]:
    if step.name not in ("map", "map-bytes", "map-sg", "dma-map", "dma-sg") or not step.failed or step.domain is None:
        return
    if any(call.name == "unmap_pages" and call.result < 0 for call in step.hypercalls):
        return
    before, after = step.before.mappings.get(step.domain, {}), step.after.mappings.get(step.domain, {})
    if before != after:
        left = sorted(after.keys() - before.keys())
        yield (
            f"{len(left)} pages stay mapped, the first at dfn {left[0]:#x}"
            if left
            else f"{len(before.keys() - after.keys())} pages that were mapped before are gone"
        )


def _expected(world: World, step: Step) -> dict[int, int]:
    """dfn -> machine frame that a successful map call asked for."""
    details = step.details
    if step.name == "map":
        pieces = [(details["pfn"] << PAGE_SHIFT, details["size"])]
    elif step.name == "map-sg":
        pieces = details["pieces"]
    else:
        return {}
    frames: dict[int, int] = {}
    dfn = details["iova"] >> PAGE_SHIFT
    for paddr, length in pieces:
        for page in range(length >> PAGE_SHIFT):
            frames[dfn] = world.mfn((paddr >> PAGE_SHIFT) + page)
            dfn += 1
    return frames


@invariant(4, "a successful iommu_map is translated page by page by the hypervisor's table")
def mapped_means_mapped(world: World, step: Step) -> Iterator[str]:
    if step.failed or step.domain is None:
        return
    table = step.after.mappings.get(step.domain, {})
    for dfn in _expected(world, step):
        if dfn not in table:
            yield f"dfn {dfn:#x} is not mapped although the call succeeded"
            return


@invariant(5, "iova_to_phys says what the hypervisor's table says, after any operations and partial failures")
def iova_to_phys_is_true(world: World, step: Step) -> Iterator[str]:
    for domain, table in step.after.mappings.items():
        earlier = step.before.mappings.get(domain, {})
        pages = set(table) if earlier is table else table.keys() | earlier.keys()
        touched = False
        for op in step.ops:
            if op.args[0] is domain and op.name in ("map_pages", "unmap_pages"):
                touched = True
                first, count, _ = _range(op)
                pages.update(range(first, first + min(count, 2048)))
        if not step.ops and len(pages) > 64:
            continue
        waiting = _waiting(domain)
        for dfn in _sample(sorted(pages)) if touched else _few(pages):
            if _firmware(world, dfn) or dfn in waiting:
                continue
            told = iommu_iova_to_phys(domain, dfn << PAGE_SHIFT | 0x123)
            real = table.get(dfn)
            if real is None and told:
                yield f"iova_to_phys({dfn << PAGE_SHIFT:#x}) is {told & ~0xFFF:#x}, nothing is mapped there"
                return
            if real is not None and not _leads_to(world, told, real[0]):
                yield f"iova_to_phys({dfn << PAGE_SHIFT:#x}) is {told:#x}, devices reach machine frame {real[0]:#x}"
                return


def _waiting(domain: IommuDomain) -> set[int]:
    """Device frames whose unmap a lazy driver may have put off until the flush."""
    queue: FlushQueue | None = None if domain.cookie is None else domain.cookie.fq
    return set() if queue is None else {pfn + page for pfn, pages in queue.waiting() for page in range(pages)}


def _firmware(world: World, dfn: int) -> bool:
    return any(rmrr.base >> PAGE_SHIFT <= dfn <= rmrr.last >> PAGE_SHIFT for rmrr in world.config.rmrrs)


def _few(pages: set[int]) -> list[int]:
    """The ends, of a domain that the call did not map or unmap in."""
    return [min(pages), max(pages)] if pages else []


def _sample(pages: list[int]) -> list[int]:
    """Both ends and a few between of a long list: asking the hypervisor for every page would take seconds."""
    return pages if len(pages) <= 48 else [*pages[:12], *pages[12:-12:97], *pages[-12:]]


def _leads_to(world: World, paddr: int, mfn: int) -> bool:
    pfn = paddr >> PAGE_SHIFT
    mfns = world.testbed.mfns
    return paddr & 0xFFF == 0x123 and (mfns[pfn] if pfn < len(mfns) else pfn) == mfn


@invariant(6, "unmap_pages reports exactly what was removed, 0 where nothing was, never less")
def unmapped_is_exact(world: World, step: Step) -> Iterator[str]:
    for op in step.named("unmap_pages"):
        if _waiting(op.args[0]):
            continue
        gone = len(op.before.keys() - op.after.keys()) << PAGE_SHIFT
        if op.result != gone:
            yield f"unmap_pages reports {op.result:#x} bytes, the hypervisor has removed {gone:#x}"


@invariant(7, "what one map call mapped, one unmap call of the same range removes, without needing memory")
def unmap_undoes_map(world: World, step: Step) -> Iterator[str]:
    if step.name != "unmap" or step.domain is None or step.injected:
        return
    first, pages = step.details["iova"] >> PAGE_SHIFT, step.details["size"] >> PAGE_SHIFT
    before = step.before.mappings.get(step.domain, {})
    if not all(dfn in before for dfn in range(first, first + pages)):
        return
    if step.result != pages << PAGE_SHIFT:
        yield f"unmap of {pages} mapped pages answers {step.result:#x}"
    starts_inside = before.get(first - 1, (None,))[0] == before[first][0] - 1
    for op in step.named("unmap_pages"):
        if op.arena[1] > op.arena[0] and not starts_inside and first + pages not in before:
            yield f"unmap_pages took {op.arena[1] - op.arena[0]} table pages"


@invariant(8, "an unmap of a slice touches nothing beyond what it reports")
def unmap_stays_inside(world: World, step: Step) -> Iterator[str]:
    for op in step.named("unmap_pages"):
        first, _, _ = _range(op)
        reported = range(first, first + (op.result >> PAGE_SHIFT))
        for dfn in op.before.keys() - op.after.keys():
            if dfn not in reported:
                yield f"dfn {dfn:#x} is gone, which unmap_pages does not report"
                return


@invariant(9, "a domain's page sizes are some of the hypervisor's, and no call uses another")
def page_sizes_are_honest(world: World, step: Step) -> Iterator[str]:
    driver = world.xen_iommu
    if driver is None or world.kernel is None:
        return
    for domain in world.kernel.iommu.domains:
        if not domain.pgsize_bitmap or domain.pgsize_bitmap & ~driver.pgsize_mask:
            yield f"a domain offers page sizes {domain.pgsize_bitmap:#x}, the hypervisor {driver.pgsize_mask:#x}"
    for call in step.hypercalls:
        size = call.before.get("pgsize", 0) if world.testbed.xen.abi.has("init") else 0
        if call.name in ("map_pages", "unmap_pages") and size and not size & driver.pgsize_mask:
            yield f"{call.name} with pgsize {size:#x}, which the hypervisor does not offer"


@invariant(10, "nothing is mapped outside the aperture, and the aperture is the hypervisor's")
def aperture_holds(world: World, step: Step) -> Iterator[str]:
    driver = world.xen_iommu
    if driver is None:
        return
    for domain, table in step.after.mappings.items():
        if domain.aperture_last != driver.max_iova_addr or not domain.force_aperture:
            yield f"a domain says it reaches {domain.aperture_last:#x}, the hypervisor {driver.max_iova_addr:#x}"
        highest = max(table, default=0)
        if highest << PAGE_SHIFT > domain.aperture_last:
            yield f"dfn {highest:#x} is mapped beyond the aperture"
    for op in step.named("map_pages"):
        first, count, _ = _range(op)
        if op.result[0] == 0 and (first + count << PAGE_SHIFT) - 1 > driver.max_iova_addr:
            yield f"map_pages at {op.args[1]:#x} answers 0 beyond the aperture"


@invariant(11, "the rights of a mapping are those that were asked for; the cache flag only with the capability")
def rights_are_kept(world: World, step: Step) -> Iterator[str]:
    driver = world.xen_iommu
    if driver is None:
        return
    cache = world.testbed.xen.abi.map_cache
    for call in step.hypercalls:
        if call.name == "map_pages" and cache and call.before["flags"] & cache and not driver.has_cache:
            yield "map_pages carries the cache flag, which the hypervisor does not offer"
    if step.failed or step.domain is None or "prot" not in step.details:
        return
    table = step.after.mappings.get(step.domain, {})
    for dfn in _expected(world, step):
        if dfn in table and table[dfn][1] != step.details["prot"] & 3:
            yield f"dfn {dfn:#x} has rights {table[dfn][1]}, asked for were {step.details['prot'] & 3}"
            return


@invariant(12, "identity lets DMA through untranslated, blocked stops every DMA")
def static_domains_do_what_they_say(world: World, step: Step) -> Iterator[str]:
    driver = world.xen_iommu
    if driver is None or world.kernel is None:
        return
    identity = driver.ops.identity_domain
    if identity is not None and identity.type != IOMMU_DOMAIN_IDENTITY:
        yield "the identity domain has the type of one that blocks"
    pfn = world.frames("near", 1)
    gfn = world.testbed.ram.pfn_to_gfn(pfn)
    for state in step.after.groups:
        if state.domain is None or state.domain.type not in (IOMMU_DOMAIN_IDENTITY, IOMMU_DOMAIN_BLOCKED):
            continue
        for sbdf in state.members:
            dev = world.kernel.devices[sbdf]  # type: ignore[index]
            if dev.pci.is_bridge or dev.pci.class_code >> 16 == 6:
                continue
            walk = world.testbed.walk(sbdf, gfn << PAGE_SHIFT)
            if state.domain.type == IOMMU_DOMAIN_IDENTITY and walk.maddr != world.mfn(pfn) << PAGE_SHIFT:
                yield f"{dev.name} is on the identity domain and does not reach its own guest's memory"
            if state.domain.type == IOMMU_DOMAIN_BLOCKED and walk.blocked is None:
                yield f"{dev.name} is on the blocked domain and reaches {walk.maddr or 0:#x}"


@invariant(13, "an attach that fails leaves the device in its old context")
def failed_attach_moves_nothing(world: World, step: Step) -> Iterator[str]:
    for op in step.named("attach_dev"):
        (before, after), name = op.where, op.args[1].name
        if op.result and before != after:
            yield About(f"attach failed ({errno_name(op.result)}), {name} moved: context {before} to {after}", name)
        if not op.result and after != op.args[0].ctx_no:
            yield About(f"attach succeeded, {name} is in context {after}, not {op.args[0].ctx_no}", name)


@invariant(14, "no context is freed with a device in it, and no number is given out twice")
def contexts_have_one_owner(world: World, step: Step) -> Iterator[str]:
    if world.kernel is None:
        return
    numbers = [getattr(domain, "ctx_no", 0) for domain in world.kernel.iommu.domains]
    if len(set(numbers)) != len(numbers):
        yield f"two domains share a context: {sorted(numbers)}"
    for call in step.hypercalls:
        if call.name == "free_context" and call.result == -16 and not step.injected:
            yield f"free_context of {call.before.get('ctx_no')}, in which there still is a device"


@invariant(15, "a device that has left is in the release domain")
def released_means_parked(world: World, step: Step) -> Iterator[str]:
    driver = world.xen_iommu
    if step.name != "unplug" or step.result or driver is None:
        return
    target = driver.ops.release_domain
    where = step.details["where"]
    if target is not None and where != getattr(target, "ctx_no", None):
        yield f"the device is in context {where}, the release domain is {getattr(target, 'ctx_no', None)}"


@invariant(16, "running out of contexts is an error of whoever asked, and leaks nothing")
def exhaustion_leaks_nothing(world: World, step: Step) -> Iterator[str]:
    if step.name in ("alloc", "claim", "plug", "type") and step.failed:
        more = step.after.contexts - step.before.contexts
        if more:
            yield f"failed ({errno_name(step.result)}) and holds context {min(more)}"


@invariant(17, "MSI window and RMRRs are reserved regions, and no IOVA lies in them")
def reserved_is_reserved(world: World, step: Step) -> Iterator[str]:
    driver, kernel = world.xen_iommu, world.kernel
    if driver is None or kernel is None:
        return
    for dev in kernel.devices.values() if step.name in ("boot", "plug", "regions") else ():
        if dev.iommu_group is None:
            continue
        regions = iommu_get_resv_regions(dev)
        if driver.msi_window is not None and not any(
            region.type == IOMMU_RESV_MSI and region.start == driver.msi_window[0] for region in regions
        ):
            yield f"{dev.name}: the MSI window is not among its reserved regions"
        for rmrr in world.config.rmrrs:
            if not step.injected and dev.pci.sbdf in rmrr.devices and not any(r.start == rmrr.base for r in regions):
                yield f"{dev.name}: its RMRR at {rmrr.base:#x} is not among its reserved regions"
    for domain, ranges in step.after.live_iovas.items():
        for first, last in ranges:
            for start, end in _kept_free(world, domain):
                if first <= end >> PAGE_SHIFT and start >> PAGE_SHIFT <= last:
                    yield f"IOVA {first << PAGE_SHIFT:#x} is handed out inside a reserved region"


def _kept_free(world: World, domain: IommuDomain) -> list[tuple[int, int]]:
    kernel = world.booted
    found = []
    for dev in kernel.devices.values():
        if dev.iommu_group is not None and dev.iommu_group.default_domain is domain:
            found += [(rmrr.base, rmrr.last) for rmrr in world.config.rmrrs if dev.pci.sbdf in rmrr.devices]
            window = kernel.xen.msi_window if kernel.xen is not None else None
            if window is not None:
                found.append((window[0], window[0] + window[1] - 1))
    return found


@invariant(18, "scattered frames of a PV guest are mapped as the right machine frames")
def right_frames(world: World, step: Step) -> Iterator[str]:
    if step.failed or step.domain is None:
        return
    table = step.after.mappings.get(step.domain, {})
    for dfn, mfn in _expected(world, step).items():
        if dfn in table and table[dfn][0] != mfn:
            yield f"dfn {dfn:#x} leads to machine frame {table[dfn][0]:#x} instead of {mfn:#x}"
            return


@invariant(19, "capable(CACHE_COHERENCY) is the hypervisor's capability")
def coherency_is_honest(world: World, step: Step) -> Iterator[str]:
    driver, kernel = world.xen_iommu, world.kernel
    if driver is None or kernel is None:
        return
    for dev in kernel.devices.values():
        if dev.iommu is not None and device_iommu_capable(dev, IOMMU_CAP_CACHE_COHERENCY) != driver.has_cache:
            yield f"{dev.name}: capable() says {not driver.has_cache}, the hypervisor says {driver.has_cache}"
            return


@invariant(20, "after iommu_unmap no cached translation of the range can be used")
def unmapped_is_flushed(world: World, step: Step) -> Iterator[str]:
    if step.name not in ("unmap", "dma-unmap") or step.domain is None or world.kernel is None:
        return
    before, after = step.before.mappings.get(step.domain, {}), step.after.mappings.get(step.domain, {})
    for state in step.after.groups:
        if state.domain is not step.domain:
            continue
        for sbdf in state.members:
            gone = sorted(before.keys() - after.keys())
            for dfn in {*gone[:3], *gone[-1:], *gone[3:-1:101]}:
                for write in (False, True):
                    reached = world.dma_reaches(sbdf, dfn << PAGE_SHIFT, write)  # type: ignore[arg-type]
                    if reached is not None:
                        yield f"a device still reaches {reached:#x} at {dfn << PAGE_SHIFT:#x}"
                        return


@invariant(21, "with deferred flushing no IOVA is reused before a flush that began after its unmap")
def queued_is_not_reused(world: World, step: Step) -> Iterator[str]:
    if world.kernel is None:
        return
    for domain in world.kernel.iommu.domains:
        cookie = domain.cookie
        queue: FlushQueue | None = None if cookie is None else cookie.fq
        if cookie is None or queue is None or cookie.iovad is None:
            continue
        live = {pfn for pfn, _ in cookie.iovad.live_ranges()}
        for pfn, _ in queue.waiting():
            if pfn not in live:
                yield f"IOVA {pfn << PAGE_SHIFT:#x} waits for a flush and is free already"
