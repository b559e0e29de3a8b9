# SPDX-License-Identifier: GPL-2.0-or-later
"""Every allocation inside every call of a scenario fails once: the call leaves nothing, and works when tried again.

The scenario does not know: a call whose allocation failed is repeated here, so its steps have to come out as they do
with all the memory in the world.  Calls are ioctls, binding, attaching and replacing, and what is done to a process
that devices share; memory is small objects and pages.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from abi.errno import errno_name
from guest_driver.iommufd import device
from guest_driver.iommufd.context import IommufdCtx
from guest_driver.iommufd.device import IommufdDevice
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.release import Release
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.page_alloc import PageAllocator
from testbed.scenarios.step import Scenario, Step
from testbed.sva.watch import Watch

Failed = Callable[[Any], int]
"""What a call answered -> 0 or -errno."""


@dataclass
class Report:
    """What came of a scenario on a place."""

    scenario: str
    place: str
    allocations: int = 0
    found: list[str] = field(default_factory=list)


class Injector:
    """Fails allocation ``number`` (from 0) of those made inside calls; counts them all."""

    def __init__(self, number: int | None) -> None:
        self.number: Final = number
        self.count = 0
        self.depth = 0
        self.fired = ""
        """What the allocation that failed was for."""
        self.found: Final[list[str]] = []

    def fails(self, purpose: str) -> bool:
        """One more allocation; whether it is the one."""
        if not self.depth:
            return False
        self.count += 1
        if self.count - 1 != self.number or self.fired:
            return False
        self.fired = purpose
        return True

    def guard(self, name: str, where: IommufdCtx | Watch | None, act: Callable[[], Any], failed: Failed) -> Any:
        """Do ``act``; if the allocation failed in it and it answers an error, look around and do it again."""
        if self.fired or where is None:
            return act()
        kernel = where.machine.kernel if isinstance(where, Watch) else where.kernel
        if kernel.slab_fault is not None or kernel.pages.fault is not None:
            return act()  # the scenario injects by itself
        before = _books(where)
        self.depth += 1
        try:
            result = act()
        finally:
            self.depth -= 1
        if not self.fired or not failed(result):
            return result
        after = _books(where)
        for what, was in before.items():
            if after[what] != was:
                answer = errno_name(failed(result))
                self.found.append(f"{name} without {self.fired} ({answer}): {what} was {was}, is {after[what]}")
        return act()


def _books(where: IommufdCtx | Watch) -> dict[str, object]:
    return sva_books(where) if isinstance(where, Watch) else books(where)


def sva_books(watch: Watch) -> dict[str, object]:
    """The same for a machine with SVA; leaves of descriptors stay for the next binding."""
    machine = watch.machine
    smmu, iommu = machine.smmu, machine.kernel.iommu
    return {
        "domains": len(iommu.domains),
        "ASIDs and who is told of invalidations": {
            asid: sorted((master.dev.name, ssid) for master, ssid in domain.devices)
            for asid, domain in smmu.asids.items()
        },
        "descriptors": {dev.name: sorted(master.cd_table.ssids) for dev, master in smmu.masters.items()},
        "streams": {dev.name: machine.stream_entry(dev) for dev in smmu.masters},
        "groups": [(id(group.domain), sorted(group.pasid_array)) for group in iommu.groups],
        "warnings": machine.kernel.printk.warnings,
    }


def books(ctx: IommufdCtx) -> dict[str, object]:
    """Everything that a failed call must leave alone.

    Not the doorbell's place: like the kernel, a table keeps it once it has been told.
    """
    kernel = ctx.kernel
    spaces = {obj.id: obj.iopt for obj in ctx.objects if isinstance(obj, Ioas)}
    return {
        "objects": {obj.id: (type(obj).__name__, obj.users) for obj in ctx.objects},
        "ids": len(ctx.objects),
        "areas": {number: [(at, area.length) for at, area in iopt.areas.items()] for number, iopt in spaces.items()},
        "reserved ranges": {
            number: [(first, last) for first, last, _ in iopt.reserved.ranges] for number, iopt in spaces.items()
        },
        "alignment": {number: iopt.iova_alignment for number, iopt in spaces.items()},
        "tables that are shown": {number: len(iopt.domains) for number, iopt in spaces.items()},
        "groups": [
            (group.id, id(group.domain), group.owner_cnt, sorted(group.pasid_array)) for group in kernel.iommu.groups
        ],
        "attached devices": [
            [idev.id for idev in igroup.devices] + sorted(igroup.pasids) for igroup in ctx.groups.values()
        ],
        "domains": len(kernel.iommu.domains),
        "references to the file": ctx.refs,
        "warnings": kernel.printk.warnings,
    }


@contextmanager
def injected(injector: Injector) -> Iterator[None]:
    """Put the injector between callers and iommufd, and under its allocations."""
    ioctl, attach, replace = IommufdCtx.ioctl, IommufdDevice.attach, IommufdDevice.replace
    do = Watch.do
    kzalloc, alloc_pages = Kernel.kzalloc, PageAllocator.alloc_pages
    bind = device.iommufd_device_bind

    def negative(result: int) -> int:
        return min(result, 0)

    def first_negative(result: tuple[int, int]) -> int:
        return min(result[0], 0)

    def not_made(made: IommufdDevice | int) -> int:
        return made if isinstance(made, int) else 0

    def new_ioctl(self: IommufdCtx, process: Any, request: int, address: int) -> int:
        head = process.mm.read(address, 4)
        asked = None if head is None else process.mm.read(address, int.from_bytes(head, "little"))

        def act() -> int:
            if asked is not None and injector.fired:
                process.mm.write(address, asked)  # an answer may have been written over the question
            return ioctl(self, process, request, address)

        result: int = injector.guard(f"ioctl {request:#x}", self, act, negative)
        return result

    def new_attach(self: IommufdDevice, *args: int) -> tuple[int, int]:
        result: tuple[int, int] = injector.guard("attach", self.ctx, lambda: attach(self, *args), first_negative)
        return result

    def new_replace(self: IommufdDevice, *args: int) -> tuple[int, int]:
        result: tuple[int, int] = injector.guard("replace", self.ctx, lambda: replace(self, *args), first_negative)
        return result

    def new_bind(ctx: IommufdCtx, dev: Any, *args: Any) -> IommufdDevice | int:
        made: IommufdDevice | int = injector.guard("bind", ctx, lambda: bind(ctx, dev, *args), not_made)
        return made

    def new_do(self: Watch, name: str, *asked: Any, **more: Any) -> Any:
        act = partial(do, self, name, *asked, **more)
        return injector.guard(name, self, act, lambda step: min(step.result, 0) if isinstance(step.result, int) else 0)

    def new_kzalloc(self: Kernel, purpose: str) -> bool:
        return kzalloc(self, purpose) and not injector.fails(purpose)

    def new_alloc_pages(self: PageAllocator, gfp: int, order: int = 0) -> int:
        return 0 if injector.fails(f"{1 << order} pages") else alloc_pages(self, gfp, order)

    changes: list[tuple[Any, str, Any, Any]] = [
        (IommufdCtx, "ioctl", ioctl, new_ioctl),
        (IommufdDevice, "attach", attach, new_attach),
        (IommufdDevice, "replace", replace, new_replace),
        (Watch, "do", do, new_do),
        (Kernel, "kzalloc", kzalloc, new_kzalloc),
        (PageAllocator, "alloc_pages", alloc_pages, new_alloc_pages),
    ]
    for module in list(sys.modules.values()):
        if getattr(module, "iommufd_device_bind", None) is bind:
            changes.append((module, "iommufd_device_bind", bind, new_bind))
    for owner, name, _, new in changes:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, old, _ in changes:
            setattr(owner, name, old)


def fail_nth(scenario: Scenario, place: str, release: Release, stride: int = 1) -> Report:
    """Run ``scenario`` with each ``stride``-th allocation failing once."""
    report = Report(scenario.name, place)
    clean, count = _run(scenario, place, release, None, report)
    report.allocations = count
    for number in range(0, count, stride):
        steps, _ = _run(scenario, place, release, number, report)
        if [(step.text, step.answer) for step in steps] != [(step.text, step.answer) for step in clean]:
            other = next((a.text for a, b in zip(steps, clean) if a.answer != b.answer), "its end")
            report.found.append(f"allocation {number}: trying again does not work: {other} is not as it was")
    return report


def _run(
    scenario: Scenario, place: str, release: Release, number: int | None, report: Report
) -> tuple[list[Step], int]:
    injector = Injector(number)
    with injected(injector):
        steps = list(scenario.steps(place, release))
    report.found += [f"allocation {number}: {what}" for what in injector.found]
    return steps, injector.count
