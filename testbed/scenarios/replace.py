# SPDX-License-Identifier: GPL-2.0-or-later
"""Thread 000, "iommufd/device: Use iommu_group_replace_domain()": replacing the table of a group of three devices.

The flow as first posted moves the group with the first device and leaves the others' books for later calls, so that for
a while two devices are in a table that does not know of them.  What was merged moves group, references and reserved
regions of all attached devices in one call.
"""

from __future__ import annotations

from collections.abc import Iterator

from abi.errno import EINVAL, ENOMEM
from guest_driver.iommufd.attach import AttachHandle, enforce_dev_resv_regions, remove_reserved
from guest_driver.iommufd.device import iommufd_device_bind
from guest_driver.iommufd.release import Release
from guest_driver.linux.iommu_attach import iommu_replace_group_handle
from testbed.iommufd_machine import make_machine
from testbed.scenarios.bench import RESERVED, Session
from testbed.scenarios.step import Step, answered, held

IOVA = 0x400_0000
ALL = ("dev1", "dev2", "dev3")


def _start(place: str, release: Release) -> tuple[Session, list[Step]]:
    """Three devices bound, hwpt1 over ioas1 with a page mapped, hwpt2 over an empty ioas2."""
    session = Session(make_machine(place), release)
    steps = []
    for name, dev in session.devices.items():
        idev = iommufd_device_bind(session.ctx, dev)
        if not isinstance(idev, int):
            session.bound[name] = idev
        steps.append(answered(f"bind {name}", idev if isinstance(idev, int) else 0, 0))
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
    yield from _end(session)


def posted(place: str, release: Release) -> Iterator[Step]:
    """Scenario 1 with the flow as first posted: each device's books are changed by its own call."""
    session, steps = _start(place, release)
    yield from steps
    for name in ALL:
        yield answered(f"attach {name} to hwpt1", _attach(session, name, "hwpt1"), 0)
    old, new = session.hwpt("hwpt1"), session.hwpt("hwpt2")
    assert old is not None and new is not None
    dev1 = session.bound["dev1"]
    source, target = old.paging.ioas.iopt, new.paging.ioas.iopt
    remove_reserved(source, dev1)
    ret = enforce_dev_resv_regions(target, dev1)
    ret = ret or iommu_replace_group_handle(dev1.igroup.group, new.domain, AttachHandle(dev1))
    old.users -= 1
    new.users += 1
    yield answered("replace dev1, as posted: hwpt1 by hwpt2", ret, 0, "one reference moves", session.state(IOVA))
    clash = session.map("ioas2", RESERVED + 0x1000)
    yield answered(
        "map over dev2's reserved page in ioas2",
        clash,
        -EINVAL,
        "dev2 is in hwpt2, but ioas2 does not know of its region",
        session.state(RESERVED + 0x1000),
    )
    second = enforce_dev_resv_regions(target, session.bound["dev2"])
    yield answered("replace dev2, as posted", second, 0, "too late: user space has the page")
    # What a careful reader has to do by hand: put the books right, so that the end is an orderly one.
    for name in ALL[1:]:
        remove_reserved(source, session.bound[name])
    old.users -= 2
    new.users += 2
    dev1.igroup.rid.hwpt = new
    yield from _end(session)


def failing(place: str, release: Release) -> Iterator[Step]:
    """A replace that the driver refuses at the first, second and third device, to another IOAS and within one."""
    session, steps = _start(place, release)
    yield from steps
    yield answered("make hwpt3, over ioas1 as well", session.table("hwpt3", "dev1", "ioas1"), 0)
    for name in ALL:
        yield answered(f"attach {name} to hwpt1", _attach(session, name, "hwpt1"), 0)
    for table in ("hwpt2", "hwpt3"):
        hwpt = session.hwpt(table)
        assert hwpt is not None
        for name, dev in session.devices.items():
            before = session.state(IOVA)
            session.bench.refuse[hwpt.domain, dev.name] = ENOMEM
            ret = _replace(session, "dev1", table)
            session.bench.refuse.clear()
            after = session.state(IOVA)
            yield answered(f"replace dev1 by {table}, refused at {name}", ret, -ENOMEM)
            yield held("nothing has changed", after == before, "group, references, reserved regions, DMA", after)
    yield answered(
        "map over dev2's reserved page in ioas1", session.map("ioas1", RESERVED + 0x1000), -EINVAL, "still reserved"
    )
    yield from _end(session)


def _end(session: Session) -> Iterator[Step]:
    warnings = session.bench.kernel.printk.warnings
    session.ctx.exit()
    group = session.bench.devices[0].iommu_group
    clean = not session.mm.pins and group is not None and group.domain is group.default_domain and not warnings
    yield held("close: nothing pinned, the group on its default domain, no warning", clean, state=session.state())
