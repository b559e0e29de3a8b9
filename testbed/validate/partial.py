# SPDX-License-Identifier: GPL-2.0-or-later
"""The partial unmap, the heart of the review: an unmap of n pages fails at page k.  Who knows what?

For every cause that a hypervisor has to stop in mid-range, and every position: what the guest was told and believes
afterwards, what the hypervisor has, what the device can still reach, and whether anybody was told.  The device's reach
is measured by DMA through the hardware half, with the translations in its caches beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from abi.errno import ENOMEM, errno_name
from base.units import PAGE_SIZE
from guest_driver import drivers
from guest_driver.linux.iommu_map import iommu_iova_to_phys
from guest_driver.linux.oops import KernelOops
from hypervisor.errors import HostStopped
from testbed.validate.calls import perform
from testbed.validate.program import Program, call
from testbed.validate.scenarios import BASE
from testbed.validate.world import RMRR, World

CAUSES: Final = {
    "no memory": "a superpage begins at page k, the unmap ends inside it, and the arena has no page for splitting it",
    "refused": "the unmap hypercall fails at page k, whatever the reason, and every later one at its first page",
    "hole": "nothing is mapped at page k",
    "rmrr": "page k belongs to firmware's reserved region",
    "preemption": "the vCPU is made to yield at page k; the call goes on by itself",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One unmap of ``pages`` pages that met something at page ``k``."""

    cause: str
    k: int
    pages: int
    mapped_before: int
    """Pages of the range that were mapped beforehand."""
    told: int
    """Pages that iommu_unmap reported as unmapped."""
    believed: int
    """Pages of the range for which the guest's iova_to_phys still has an answer."""
    mapped: int
    """Pages of the range that the hypervisor's table still maps for the guest."""
    reached: int
    """Pages of the range that the device still reaches, among those that were the guest's buffer."""
    errno: str
    """What the hypercall answered where it stopped; "0" if it never failed."""
    logged: str
    """What the kernel log says about it; "" for silence."""

    @property
    def honest(self) -> bool:
        """Guest, hypervisor and device agree: whatever is still reachable is known to be."""
        return self.believed == self.mapped == self.reached and self.told == self.mapped_before - self.mapped

    @property
    def noticed(self) -> str:
        """Who was told that not everything is gone: "caller", "log", "nobody"; "-" if everything is."""
        if not self.mapped:
            return "-"
        if self.told == self.mapped_before - self.mapped:
            return "caller"
        return "log" if self.logged else "nobody"


def partial_unmap(
    driver: str = "reference",
    profile: str = "v7-fixed",
    backend: str = "vtd",
    guest: str = "pvh",
    pages: int = 8,
    causes: tuple[str, ...] = tuple(CAUSES),
) -> Iterator[Outcome]:
    """Every cause at every position k of an unmap of ``pages`` pages; ``ValueError`` for unknown names.

    A position at which a driver or hypervisor dies is an outcome whose ``errno`` says so.
    """
    version = drivers.get(driver)
    for cause in causes:
        world = World(version, backend=backend, profile=profile, guest=guest, rmrr=cause == "rmrr")
        for k in range(pages):
            if cause == "rmrr" and k == 0:
                continue  # the guest cannot have mapped such a range
            try:
                yield _one(world, cause, k, pages)
            except (KernelOops, HostStopped) as death:
                world.rebuild()
                yield Outcome(cause, k, pages, 0, 0, 0, 0, 0, f"died: {death}", "")


def _setup(cause: str, k: int, pages: int) -> tuple[int, Program]:
    """(first IOVA of the range, the calls before the unmap)."""
    iova = RMRR.base - k * PAGE_SIZE if cause == "rmrr" else BASE
    start: Program = (call("boot"), call("alloc", 0, "copier"), call("attach", 0, "copier"))
    if cause == "rmrr":
        return iova, (*start, call("map", 0, iova, "near", k))
    if cause == "hole":
        parts = [(iova, "near", k), (iova + (k + 1) * PAGE_SIZE, f"near+{k + 1}", pages - k - 1)]
        return iova, (*start, *(call("map", 0, at, frames, count) for at, frames, count in parts if count))
    if cause == "no memory":
        iova -= k * PAGE_SIZE
        # One page more than the range has, so that its table does not become free on the way.
        before = call("map", 0, iova - PAGE_SIZE, "near+512", k + 1)
        return iova, (*start, before, call("map", 0, BASE, "near", 512), call("no-arena"))
    if cause == "refused":
        return iova, (*start, call("map", 0, iova, "near", 512), call("fail", "unmap_pages", -ENOMEM, k, 0, 99))
    return iova, (*start, call("map", 0, iova, "near", pages))


def _one(world: World, cause: str, k: int, pages: int) -> Outcome:
    world.reset()
    iova, program = _setup(cause, k, pages)
    for step in program:
        done = perform(world, step.name, step.args)
        if done.failed:
            raise KernelOops(f"{step} failed ({errno_name(done.result)})")
    domain = world.domains[0]
    before = world.mapped(domain)
    dfns = [dfn for dfn in range(iova >> 12, (iova >> 12) + pages) if dfn in before]
    perform(world, "touch", ("copier", iova, pages))
    logged = len(world.booted.log)
    xen = world.testbed.xen
    if cause == "preemption":
        asked = iter([*[False] * k, *[True] * (pages + 4096)])
        xen.preempt = lambda vcpu: next(asked, False)
    try:
        unmap = perform(world, "unmap", (0, iova, pages))
    finally:
        xen.preempt = None
    after = world.mapped(domain)
    sbdf = world.device("copier").pci.sbdf
    refused = [c.result for c in unmap.hypercalls if c.name == "unmap_pages" and c.result < 0]
    new = [line for line in world.booted.log[logged:] if "xen-iommu" in line or "WARN" in line]
    return Outcome(
        cause,
        k,
        pages,
        len(dfns),
        unmap.result >> 12,
        sum(bool(iommu_iova_to_phys(domain, dfn << 12)) for dfn in dfns),
        sum(dfn in after for dfn in dfns),
        sum(world.dma_reaches(sbdf, dfn << 12) is not None for dfn in dfns),
        errno_name(refused[0]) if refused else "0",
        new[0] if new else "",
    )
