# SPDX-License-Identifier: GPL-2.0-or-later
"""Thread 000, "iommufd/device: Use iommu_group_replace_domain()": replacing the table of a group of three devices.

The flow as first posted moves the group with the first device and leaves the others' books for later calls, so that for
a while two devices are in a table that does not know of them.  What was merged moves group, references and reserved
regions of all attached devices in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from abi.errno import EADDRINUSE, EINVAL, ENOMEM
from guest_driver.iommufd.attach import AttachHandle, enforce_dev_resv_regions, remove_reserved
from guest_driver.iommufd.release import Release
from guest_driver.linux.iommu_attach import iommu_replace_group_handle
from testbed.iommufd_machine import make_machine
from testbed.scenarios.bench import Session
from testbed.scenarios.step import Step, answered, held

IOVA = 0x400_0000
ALL = ("dev1", "dev2", "dev3")


def _start(place: str, release: Release) -> tuple[Session, list[Step]]:
    """Three devices bound, hwpt1 over ioas1 with a page mapped, hwpt2 over an empty ioas2."""
    session = Session(make_machine(place), release)
    steps = []
    for name in session.devices:
        steps.append(answered(f"bind {name}", session.bind(name), 0))
    for number in "12":
        ret = session.ioas(f"ioas{number}") or session.table(f"hwpt{number}", "dev1", f"ioas{number}")
        steps.append(answered(f"make ioas{number} and hwpt{number}", ret, 0))
    steps.append(answered(f"map a page at {IOVA:#x} in ioas1", session.map("ioas1", IOVA), 0))
    return session, steps


def _attach(session: Session, device: str, table: str) -> int:
    return session.bound[device].attach(session.ids[table])[0]


def _replace(session: Session, device: str, table: str) -> int:
    return session.bound[device].replace(session.ids[table])[0]


def _consistent(session: Session, table: str, ioas: str, other: str, attached: tuple[str, ...]) -> bool:
    """References and reserved regions are those of ``attached``, and the group is on ``table``."""
    hwpt = session.hwpt(table)
    assert hwpt is not None
    target, source = hwpt.paging.ioas, session.ctx.objects.get(session.ids[other], type(hwpt.paging.ioas))
    assert source is not None and target.id == session.ids[ioas]
    group = session.bench.devices[0].iommu_group
    return (
        group is not None
        and group.domain is hwpt.domain
        and hwpt.users - 1 == len(attached)
        and session.owners(target) == list(attached)
        and session.owners(source) == []
    )


def merged(place: str, release: Release, detached: tuple[str, ...]) -> Iterator[Step]:
    """The thread's scenarios: all three attached, ``detached`` leave again, dev1 replaces, then the others."""
    session, steps = _start(place, release)
    yield from steps
    for name in ALL:
        yield answered(f"attach {name} to hwpt1", _attach(session, name, "hwpt1"), 0, state=session.state(IOVA))
    for name in detached:
        session.bound[name].detach()
        yield answered(f"detach {name}", 0, 0, "it stays in hwpt1's domain, being in the group", session.state(IOVA))
    left = tuple(name for name in ALL if name not in detached)
    ret = _replace(session, "dev1", "hwpt2")
    yield answered("replace dev1: hwpt1 by hwpt2", ret, 0, "the whole group moves", session.state(IOVA))
    yield held(
        "references and reserved regions are those of the attached devices",
        _consistent(session, "hwpt2", "ioas2", "ioas1", left),
    )
    for name in left[1:]:
        yield answered(f"replace {name} by hwpt2", _replace(session, name, "hwpt2"), 0, "there already: nothing to do")
    for name in detached:
        yield answered(f"attach {name} to hwpt1", _attach(session, name, "hwpt1"), -EINVAL, "not the group's table")
        yield answered(f"replace {name} by hwpt1", _replace(session, name, "hwpt1"), -EINVAL, "not attached")
        yield answered(f"attach {name} to hwpt2", _attach(session, name, "hwpt2"), 0, "adds its regions only")
    yield held(
        "all three are in the books", _consistent(session, "hwpt2", "ioas2", "ioas1", tuple(sorted((*left, *detached))))
    )
    yield from session.end()


def posted(place: str, release: Release, detached: tuple[str, ...]) -> Iterator[Step]:
    """The flow as first posted: the domain moves with the first device, each device's books with its own call."""
    session, steps = _start(place, release)
    yield from steps
    for name in ALL:
        yield answered(f"attach {name} to hwpt1", _attach(session, name, "hwpt1"), 0)
    for name in detached:
        session.bound[name].detach()
    left = tuple(name for name in ALL if name not in detached)
    old, new = session.hwpt("hwpt1"), session.hwpt("hwpt2")
    assert old is not None and new is not None
    source, target = old.paging.ioas.iopt, new.paging.ioas.iopt
    for name in left:
        idev = session.bound[name]
        remove_reserved(source, idev)
        ret = enforce_dev_resv_regions(target, idev)
        if name == left[0]:
            ret = ret or iommu_replace_group_handle(idev.igroup.group, new.domain, AttachHandle(idev))
        if not ret:
            old.users -= 1
            new.users += 1
        late = "" if name == left[0] else "too late: user space has the page"
        yield answered(f"replace {name}, as posted: hwpt1 by hwpt2", ret, 0, late, session.state(IOVA))
        if name == left[0]:
            yield answered(
                f"map over {left[1]}'s reserved page in ioas2",
                session.map("ioas2", session.reserved(left[1])),
                -EINVAL,
                f"{left[1]} is in hwpt2, but ioas2 does not know of its region",
                session.state(session.reserved(left[1])),
            )
    # What a careful reader has to do by hand: put the books right, so that the end is an orderly one.
    for name in left:
        remove_reserved(source, session.bound[name])
    new.users += old.users - 1
    old.users = 1
    session.bound[left[0]].igroup.rid.hwpt = new
    yield from session.end()


def automatic(place: str, release: Release) -> Iterator[Step]:
    """Scenario 1 by address space instead of table: the automatic table comes and goes with its devices."""
    session, steps = _start(place, release)
    yield from steps
    for name in ALL:
        ret, made = session.bound[name].attach(session.ids["ioas1"])
        session.ids["auto1"] = made
        yield answered(f"attach {name} to ioas1", ret, 0, "one automatic table for all", session.state(IOVA))
    ret, made = session.bound["dev2"].replace(session.ids["ioas2"])
    session.ids["auto2"] = made
    yield answered("replace dev2: ioas1 by ioas2", ret, 0, "the whole group moves", session.state(IOVA))
    yield held("the automatic table of ioas1 has gone", session.hwpt("auto1") is None)
    yield held("books are those of all three", _consistent(session, "auto2", "ioas2", "ioas1", ALL))
    for name in ALL:
        session.bound[name].detach()
    yield held("the automatic table of ioas2 has gone with the last", session.hwpt("auto2") is None)
    yield from session.end()


def failing(place: str, release: Release) -> Iterator[Step]:
    """A replace that fails: refused by the driver at each device, to another IOAS and within one; by a mapping over
    each device's reserved page; and for want of memory at each allocation."""
    session, steps = _start(place, release)
    yield from steps
    yield answered("make hwpt3, over ioas1 as well", session.table("hwpt3", "dev1", "ioas1"), 0)
    for name in ALL:
        yield answered(f"attach {name} to hwpt1", _attach(session, name, "hwpt1"), 0)
    for table in ("hwpt2", "hwpt3"):
        hwpt = session.hwpt(table)
        assert hwpt is not None
        for name, dev in session.devices.items():
            session.bench.refuse[hwpt.domain, dev.name] = ENOMEM
            yield from _nothing_changes(session, f"replace dev1 by {table}, refused at {name}", table, -ENOMEM)
            session.bench.refuse.clear()
    reserved = session.reserved("dev2")
    yield answered("map over dev2's reserved page in ioas1", session.map("ioas1", reserved), -EINVAL, "still reserved")
    for name in ALL:
        yield answered(f"map over {name}'s reserved page in ioas2", session.map("ioas2", session.reserved(name)), 0)
        yield from _nothing_changes(session, "replace dev1 by hwpt2", "hwpt2", -EADDRINUSE)
        yield held("unmap it", session.unmap("ioas2", session.reserved(name), 0x1000) == 0x1000)
    allocations = 0
    while True:
        session.bench.kernel.slab_fault = _fail_once(allocations)
        before = session.state(IOVA)
        ret = _replace(session, "dev1", "hwpt2")
        session.bench.kernel.slab_fault = None
        if not ret:
            break
        allocations += 1
        step = f"replace dev1 by hwpt2, allocation {allocations} fails"
        yield answered(step, ret, -ENOMEM)
        yield held("nothing has changed", session.state(IOVA) == before)
    yield answered("replace dev1 by hwpt2, with memory", ret, 0, f"{allocations} allocations", session.state(IOVA))
    yield answered("and back", _replace(session, "dev1", "hwpt1"), 0)
    yield from session.end()


def attach_failing(place: str, release: Release) -> Iterator[Step]:
    """An attach that fails at each of its steps, for the first device of the group and for a later one."""
    session, steps = _start(place, release)
    yield from steps
    for name in ALL[:2]:
        hwpt = session.hwpt("hwpt1")
        assert hwpt is not None
        yield answered(f"map over {name}'s reserved page", session.map("ioas1", session.reserved(name)), 0)
        yield from _nothing_changes(session, f"attach {name} to hwpt1", "hwpt1", -EADDRINUSE, name)
        yield held("unmap it", session.unmap("ioas1", session.reserved(name), 0x1000) == 0x1000)
        if name == "dev1":  # the second one moves nothing
            for refusing, dev in session.devices.items():
                session.bench.refuse[hwpt.domain, dev.name] = ENOMEM
                yield from _nothing_changes(session, f"attach dev1, refused at {refusing}", "hwpt1", -ENOMEM, name)
                session.bench.refuse.clear()
        for table in ("hwpt2", "hwpt1") if name != "dev1" else ("hwpt1",):
            ret = _attach(session, name, table)
            wanted = -EINVAL if table == "hwpt2" else 0
            yield answered(f"attach {name} to {table}", ret, wanted, "" if not ret else "not the group's table")
    yield from session.end()


def _nothing_changes(session: Session, text: str, table: str, wanted: int, attaching: str = "") -> Iterator[Step]:
    """A replace (or attach) that fails, and the state before and after it."""
    before = session.state(IOVA)
    ret = _attach(session, attaching, table) if attaching else _replace(session, "dev1", table)
    after = session.state(IOVA)
    yield answered(text, ret, wanted)
    yield held("nothing has changed", after == before, "group, references, reserved regions, DMA", after)


def _fail_once(number: int) -> Callable[[str], bool]:
    """A fault point: allocation ``number`` fails, counted from 0."""
    left = [number]

    def fault(purpose: str) -> bool:
        left[0] -= 1
        return left[0] == -1

    return fault
