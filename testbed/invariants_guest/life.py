# SPDX-License-Identifier: GPL-2.0-or-later
"""Properties without a number: errnos, WARNs, the number of hypercalls, leaks at the end."""

from collections.abc import Iterator
from itertools import pairwise

from abi.errno import errno_name
from testbed.invariants_guest.registry import About, invariant
from testbed.validate.record import Step
from testbed.validate.world import World

EPROBE_DEFER = 517


@invariant("errno", "every error that leaves the driver is one that user space knows")
def errno_is_known(world: World, step: Step) -> Iterator[str]:
    if step.failed and errno_name(step.result).startswith("errno ") and step.result != -EPROBE_DEFER:
        yield f"answers {step.result}"


@invariant("warn", "the guest kernel WARNs only when a hypercall was refused")
def no_warnings(world: World, step: Step) -> Iterator[str]:
    if step.after.warnings > step.before.warnings and not any(call.result < 0 for call in step.hypercalls):
        log = world.booted.log
        yield next((line for line in reversed(log) if "WARN" in line), log[-1] if log else "a WARN")


@invariant("calls", "neighbouring machine frames are mapped by one hypercall")
def runs_are_merged(world: World, step: Step) -> Iterator[str]:
    if step.name != "map" or step.failed or step.injected:
        return
    pfn, pages = step.details["pfn"], step.details["size"] >> 12
    mfns = world.testbed.mfns[pfn : pfn + pages]
    runs = 1 + sum(b != a + 1 for a, b in pairwise(mfns))
    limit = world.testbed.xen.abi.max_nr_pages or pages
    allowed = (runs + len(step.named("map_pages")) - 1) * -(-pages // limit)
    used = sum(call.name == "map_pages" for call in step.hypercalls)
    if used > allowed:
        yield f"{pages} pages in {runs} runs of frames took {used} map_pages calls"


@invariant("leak", "after shutdown nothing is left: no context, no device outside context 0, no reserved page")
def nothing_is_left(world: World, step: Step) -> Iterator[str]:
    if step.name != "shutdown":
        return
    for number in sorted(step.after.contexts):
        yield About(f"context {number} was never given back", f"context {number}")
    left = world.booted.leaks()
    if any(left.values()) and not world.dma:
        yield "the guest still holds " + ", ".join(f"{count} {kind}" for kind, count in left.items() if count)
    for sbdf, device in world.testbed.dom0.devices.items():
        if device.context is not None and device.context.number:
            yield About(f"device {sbdf:#x} is left in context {device.context.number}", f"device {sbdf:#x}")
