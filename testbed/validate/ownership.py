# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may own the DMA of a group with several devices: the question of a thread of December 2021, run.

"[PATCH v4 07/13] iommu: Add iommu_at[de]tach_device_shared() for multi-device groups" asks how the IOMMU core can
know whether a group is viable for user space when drivers are unbound and vfio is bound device by device, and whether
interfaces for drivers should speak of groups or of devices.  Its sketch counts owners in the group and answers -EBUSY
throughout.  What was merged (Linux 5.19) keeps the count, has interfaces for both, and tells two errors apart: -EPERM
for a claim of what is in use, -EBUSY for a bind to what is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from abi.errno import EBUSY, EINVAL, EPERM, errno_name
from guest_driver import drivers
from testbed.build import COPIER
from testbed.invariants_guest import check
from testbed.validate.calls import perform
from testbed.validate.program import Call, call
from testbed.validate.world import World


@dataclass(frozen=True, slots=True)
class Row:
    """One step: the call, what it answered, what merged code answers, and where the group is then."""

    call: Call
    result: int
    merged: int
    group: str
    comment: str
    broken: tuple[str, ...]
    """Invariants that did not hold afterwards."""

    @property
    def ok(self) -> bool:
        return self.result == self.merged and not self.broken


_STEPS: Final = (
    (call("one-group"), 0, "two functions without ACS between them share a group"),
    (call("boot"), 0, "the group is on its default domain"),
    (call("bind", "copier"), 0, "a native driver takes the first device: the group's count is 1"),
    (call("bind", "rogue"), 0, "another takes the second: 2; kernel drivers share the default domain"),
    (call("claim", "rogue"), -EPERM, "not viable: the sketch of the thread says -EBUSY, merged is -EPERM"),
    (call("unbind", "rogue"), 0, "one native driver is gone"),
    (call("claim", "rogue"), -EPERM, "still not viable, because of the *other* device: the thread's question"),
    (call("unbind", "copier"), 0, "now nobody uses the group"),
    (call("claim", "rogue"), 0, "the whole group is user space's, and blocked until a domain is attached"),
    (call("claim", "rogue", "another process"), -EPERM, "one owner at a time"),
    (call("bind", "copier"), -EBUSY, "no native driver gets in through the other device"),
    (call("alloc", 0, "copier"), 0, "user space's own domain"),
    (call("attach-device", 0, "copier"), -EINVAL, "a device of such a group cannot be attached alone"),
    (call("attach", 0, "copier"), 0, "the group as a whole can; both devices move"),
    (call("detach", 0, "copier"), 0, "back to blocked, not to the default: never a moment of kernel memory"),
    (call("release", "rogue"), 0, "the default domain is back"),
    (call("bind", "copier"), 0, "and native drivers may bind again"),
)


def ownership(driver: str = "reference", profile: str = "v7-fixed", backend: str = "vtd") -> Iterator[Row]:
    """Run the steps one after the other; ``ValueError`` for unknown names."""
    world = World(drivers.get(driver), backend=backend, profile=profile)
    for step, merged, comment in _STEPS:
        done = perform(world, step.name, step.args)
        broken = tuple(complaint.invariant for complaint in check(world, done))
        yield Row(step, done.result, merged, _where(world), comment, broken)


def _where(world: World) -> str:
    if world.kernel is None:
        return "-"
    group = world.booted.devices[COPIER].iommu_group
    if group is None:
        return "none"
    names = {id(group.default_domain): "default", id(group.blocking_domain): "blocked"}
    return names.get(id(group.domain), "user's")


def rows_as_lines(rows: list[Row]) -> Iterator[str]:
    """The run as text."""
    yield f"{'call':30} {'answer':>8}  {'group on':8}  what it shows"
    for row in rows:
        answer = errno_name(row.result) if row.result >= 0 else f"-{errno_name(row.result)}"
        mark = (
            "" if row.ok else f"   <-- merged code answers {row.merged}; broken: {', '.join(row.broken) or 'nothing'}"
        )
        yield f"{row.call!s:30} {answer:>8}  {row.group:8}  {row.comment}{mark}"
