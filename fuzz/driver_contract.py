# SPDX-License-Identifier: GPL-2.0-or-later
"""What calls of driver level must answer, where it follows from what was asked and which hypercalls were refused."""

from collections.abc import Callable, Iterator
from typing import Final

from abi.errno import ENODEV, ENOMEM, ENOSPC, EPERM, errno_name
from base.units import PAGE_SHIFT
from guest_driver.linux.iommu import IOMMU_DOMAIN_BLOCKED, IOMMU_DOMAIN_IDENTITY
from guest_driver.linux.iommu_map import iommu_iova_to_phys
from testbed.validate.record import Step
from testbed.validate.world import World

CONTRACT: Final[dict[str, tuple[str, Callable[[World, Step], Iterator[str]]]]] = {}
"""Name of the clause to (its prose, what yields where it does not hold)."""
_PROBE: Final = 0x1234_5000
_REFUSALS: Final = tuple([("query_capabilities", errno)] for errno in (-EPERM, -ENODEV))


def _clause(name: str, prose: str) -> Callable[[Callable[[World, Step], Iterator[str]]], None]:
    def add(function: Callable[[World, Step], Iterator[str]]) -> None:
        CONTRACT[name] = prose, function

    return add


def _refused(step: Step) -> list[str]:
    return [call.name for call in step.hypercalls if call.result < 0]


@_clause("smaller-arena", "An arena that is not to be had is asked for again, smaller, before the driver gives up.")
def _smaller_arena(world: World, step: Step) -> Iterator[str]:
    refused = [(call.name, call.result) for call in step.hypercalls if call.result < 0]
    if step.name == "boot" and step.result and refused == [("init", -ENOMEM)] and not world.faults.overrides:
        yield f"after one IOMMU_init without memory the start answers {errno_name(step.result)}"


@_clause("absent", "A hypervisor that refuses to be asked is absent to the guest: the start answers -ENODEV.")
def _absent(world: World, step: Step) -> Iterator[str]:
    refused = [(call.name, call.result) for call in step.hypercalls if call.result < 0]
    if step.name == "boot" and refused in _REFUSALS and step.result != -ENODEV:
        yield f"query_capabilities was refused, the start answers {errno_name(step.result)}"


@_clause("blocking-is-free", "Blocking a device takes no context and no memory.")
def _blocking_is_free(world: World, step: Step) -> Iterator[str]:
    if step.name != "claim" or step.result not in (-ENOMEM, -ENOSPC) or world.booted.kernel.slab_fault is not None:
        return
    if "reattach_device" not in _refused(step):
        yield f"claiming a device's DMA answers {errno_name(step.result)}"


@_clause("default-domain", "A group's default domain lets DMA through, and says so: identity or paging, not blocked.")
def _default_domain(world: World, step: Step) -> Iterator[str]:
    if step.name != "boot" or step.result or world.xen_iommu is None:
        return
    for state in step.after.groups:
        domain = state.default
        if domain is None or domain is world.xen_iommu.blocked:
            continue
        if domain.type == IOMMU_DOMAIN_BLOCKED:
            yield f"group {state.group.id}'s default domain says that it blocks"
        elif domain.type == IOMMU_DOMAIN_IDENTITY and iommu_iova_to_phys(domain, _PROBE) != _PROBE:
            yield f"group {state.group.id}'s identity domain leads elsewhere"


@_clause(
    "map-works",
    "The guest's own pages can be mapped where nothing is, unless a hypercall is made to fail or memory is short.",
)
def _map_works(world: World, step: Step) -> Iterator[str]:
    driver = world.xen_iommu
    if step.name != "map" or step.result in (0, -ENOMEM) or step.domain is None or driver is None or step.injected:
        return
    iova, pfn, size = step.details["iova"], step.details["pfn"], step.details["size"]
    first, last, pages = iova >> PAGE_SHIFT, iova + size - 1 >> PAGE_SHIFT, size >> PAGE_SHIFT
    if not step.details["prot"] & 3 or iova + size - 1 > driver.max_iova_addr or pfn + pages > len(world.testbed.mfns):
        return
    if any(rmrr.base <= iova + size - 1 and iova <= rmrr.last for rmrr in world.config.rmrrs):
        return
    mapped = step.before.mappings.get(step.domain, {})
    if not any(dfn in mapped for dfn in range(first, last + 1)):
        yield f"a map of {pages} pages where nothing was mapped answers {errno_name(step.result)}"
