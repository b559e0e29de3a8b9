# SPDX-License-Identifier: GPL-2.0-or-later
"""Thread 002, DMA ownership of groups with several devices: user space takes a group device by device.

The thread asks how the core can know that a group is viable for user space.  Its first sketch sets the count to 1 for
a kernel driver instead of counting, and the second claims with -EBUSY; what was merged counts both, and answers -EPERM
for a claim and -EBUSY for a bind.
"""

from __future__ import annotations

from collections.abc import Iterator

from abi.errno import EBUSY, EPERM
from guest_driver.iommufd.context import iommufd_open
from guest_driver.iommufd.device import iommufd_device_bind, iommufd_device_unbind
from guest_driver.iommufd.release import Release
from guest_driver.linux.iommu_group import IommuGroup
from guest_driver.linux.iommu_owner import iommu_device_unuse_default_domain, iommu_device_use_default_domain
from testbed.iommufd_machine import make_machine
from testbed.scenarios.bench import Session
from testbed.scenarios.step import Step, answered, held


def _sketch_use_dma_api(group: IommuGroup) -> int:
    """The thread's iommu_device_use_dma_api: a kernel driver marks the group as used."""
    if group.owner_cnt or group.domain is not group.default_domain:
        return -EBUSY
    group.owner_cnt, group.owner = 1, None
    return 0


def _sketch_unuse_dma_api(group: IommuGroup) -> None:
    """Its counterpart, which the thread does not show: what undoes a mark."""
    group.owner_cnt = 0


def _sketch_set_dma_owner(group: IommuGroup, owner: object) -> int:
    """The thread's iommu_group_set_dma_owner: user space takes the group, or one more of its devices."""
    if group.owner_cnt:
        if group.owner is not owner:
            return -EBUSY
        group.owner_cnt += 1
        return 0
    if group.domain is not group.default_domain:
        return -EBUSY
    group.owner_cnt, group.owner = 1, owner
    return 0


def sketches(place: str, release: Release) -> Iterator[Step]:
    """The same story with the thread's two sketches: what they answer where merged code answers something else."""
    session = Session(make_machine(place), release)
    group = session.devices["dev1"].iommu_group
    assert group is not None
    yield answered("a kernel driver binds dev1", _sketch_use_dma_api(group), 0, state=session.state())
    yield answered("a kernel driver binds dev2", _sketch_use_dma_api(group), 0, "its count is not 0", session.state())
    yield answered("user space takes dev3", _sketch_set_dma_owner(group, session), -EPERM, "merged: -EPERM")
    _sketch_unuse_dma_api(group)
    yield answered(
        "dev2's driver, had it been bound, goes; user space takes dev2",
        _sketch_set_dma_owner(group, session),
        -EPERM,
        "dev1's driver is still there: one flag cannot count two drivers",
        session.state(),
    )
    yield answered("user space takes dev3 as well", _sketch_set_dma_owner(group, session), 0, "the same owner may")
    group.owner_cnt, group.owner = 0, None
    yield held("nobody owns the group", group.domain is group.default_domain)
    session.ctx.exit()


def one_after_another(place: str, release: Release) -> Iterator[Step]:
    """Kernel drivers leave one by one, vfio takes their place one by one."""
    session = Session(make_machine(place), release)
    kernel_driver = iommu_device_use_default_domain
    devices = session.devices

    def bind(name: str) -> int:
        idev = iommufd_device_bind(session.ctx, devices[name])
        if isinstance(idev, int):
            return idev
        session.bound[name] = idev
        return 0

    yield answered("a kernel driver binds dev1", kernel_driver(devices["dev1"]), 0, state=session.state())
    yield answered(
        "a kernel driver binds dev2",
        kernel_driver(devices["dev2"]),
        0,
        "the first sketch refuses with -EBUSY: its count is not 0",
        session.state(),
    )
    yield answered("user space takes dev3", bind("dev3"), -EPERM, "the second sketch says -EBUSY")
    iommu_device_unuse_default_domain(devices["dev2"])
    yield answered("dev2's driver goes; user space takes dev2", bind("dev2"), -EPERM, "not viable: dev1 is in use")
    iommu_device_unuse_default_domain(devices["dev1"])
    yield answered("dev1's driver goes; user space takes dev2", bind("dev2"), 0, "viable", session.state())
    yield answered("a kernel driver binds dev1", kernel_driver(devices["dev1"]), -EBUSY, "not beside user space")
    yield answered("user space takes dev1", bind("dev1"), 0, "the same owner may", session.state())
    other = iommufd_open(session.bench.kernel, release)
    assert not isinstance(other, int)
    stranger = iommufd_device_bind(other, devices["dev3"])
    yield answered("another process takes dev3", stranger if isinstance(stranger, int) else 0, -EPERM, "one owner")
    other.close()
    ret = session.ioas("ioas1") or session.bound["dev1"].attach(session.ids["ioas1"])[0]
    yield answered("attach dev1", ret, 0, "the group moves as one", session.state())
    iommufd_device_unbind(session.bound.pop("dev2"))
    yield answered("user space gives dev2 back", kernel_driver(devices["dev2"]), -EBUSY, "dev1 still has the group")
    session.ctx.exit()
    yield answered("user space ends; a kernel driver binds dev2", kernel_driver(devices["dev2"]), 0)
    iommu_device_unuse_default_domain(devices["dev2"])
    group = devices["dev1"].iommu_group
    clean = group is not None and group.owner_cnt == 0 and group.domain is group.default_domain
    yield held("nobody owns the group, it is on its default domain", clean and not session.bench.kernel.printk.warnings)
