# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of object over xen-iommu with x1-nested: what the interface has is used, what it has not is refused.

A virtual SMMU and its events are an SMMUv3's, PASIDs are VT-d's; page requests, hardware queues: neither has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from abi.errno import EBUSY, EEXIST, EINVAL, EOPNOTSUPP
from guest_driver.iommufd.eventq import FaultQueue, VEventQueue
from guest_driver.iommufd.process import Files, MemFd
from guest_driver.iommufd.release import Release
from guest_driver.xen_nested import VEVENTQ_TYPE_ARM_SMMUV3, VIOMMU_TYPE_ARM_SMMUV3
from testbed.iommufd_machine import X1, DeviceSpec, XenMachine
from testbed.scenarios.bench import Session
from testbed.scenarios.nesting import VirtualMachine
from testbed.scenarios.nesting_vtd import VtdVirtualMachine
from testbed.scenarios.step import Step, answered, held

IOVA: Final = 0x400_0000
PAGE: Final = 0x1000
_PARENT, _FAULT_ID, _PASID = 1, 4, 8
_SPECS: Final = (DeviceSpec("dev1", 0, pasids=64), DeviceSpec("dev2", 1))


def life(place: str, release: Release) -> Iterator[Step]:
    """Files in memory, a queue, nested tables, and a virtual SMMU or PASIDs."""
    session = Session(XenMachine(place, _SPECS, profile=X1), release)
    for name in ("dev1", "dev2"):
        yield answered(f"bind {name}", session.bind(name), 0)
    yield answered("make ioas1", session.ioas("ioas1"), 0)
    yield from files(session)
    flags = _PARENT | (_PASID if place == "vtd" else 0)
    yield answered("make parent", session.table("parent", "dev1", "ioas1", flags), 0)
    yield from _queue(session)
    vm = VirtualMachine(session, "dev1") if place == "smmuv3" else VtdVirtualMachine(session, "dev1")
    yield answered("give a virtual machine its memory", vm.boot(), 0)
    yield from _virtual_smmu(session, vm) if isinstance(vm, VirtualMachine) else _pasids(session, vm)
    yield from session.end()


def files(session: Session) -> Iterator[Step]:
    """A file in memory is mapped, pinned by an attach, charged to another process, and unmapped."""
    file = MemFd(session.bench.kernel, 2 * PAGE)
    files = session.process.files
    fd = files.reserve()
    files.install(fd, file)
    fields = {"ioas_id": session.ids["ioas1"], "fd": fd, "flags": 7, "iova": IOVA}
    yield answered("map a file", session.call("IOAS_MAP_FILE", length=2 * PAGE, **fields)[0], 0)
    attach = session.bound["dev2"].attach(session.ids["ioas1"])[0]
    yield answered("attach dev2 to ioas1", attach, 0, "its pages are pinned now")
    seen = session.bench.dma(session.devices["dev2"], IOVA + PAGE)
    yield held("dev2 reaches it", seen == "ok" and file.pinned() == 2)
    yield answered("charge another process", session.call("IOAS_CHANGE_PROCESS")[0], 0, "all of it is of files")
    yield held("unmap it", session.unmap("ioas1", IOVA, 2 * PAGE) == 2 * PAGE and not file.pinned())
    file.close()
    session.bound["dev2"].detach()


def close(session: Session, file: object) -> None:
    """The process closes the descriptor that it has of ``file``."""
    table = session.process.files
    assert isinstance(table, Files)
    table.close(next(fd for fd, known in table.files.items() if known is file))


def _made(session: Session, name: str, ioctl: str, field: str, **fields: int) -> int:
    ret, out = session.call(ioctl, **fields)
    if not ret:
        session.ids[name] = out[field]
    return ret


def _queue(session: Session) -> Iterator[Step]:
    ret = _made(session, "queue", "FAULT_QUEUE_ALLOC", "out_fault_id")
    yield answered("make a queue of page requests", ret, 0)
    fields = {"dev_id": session.bound["dev1"].id, "pt_id": session.ids["ioas1"], "flags": _FAULT_ID}
    ret = _made(session, "asking", "HWPT_ALLOC", "out_hwpt_id", fault_id=session.ids["queue"], **fields)
    yield answered("make a table with it", ret, 0, "nobody will ask: the interface has no page requests")
    queue = session.ctx.objects.get(session.ids["queue"], FaultQueue)
    yield held("it is empty", queue is not None and not queue.readable())
    close(session, queue)
    yield answered("destroy the queue", session.call("DESTROY", id=session.ids["queue"])[0], -EBUSY, "a table has it")
    for name in ("asking", "queue"):
        yield answered(f"destroy the {name}", session.call("DESTROY", id=session.ids.pop(name))[0], 0)


def _virtual_smmu(session: Session, vm: VirtualMachine) -> Iterator[Step]:
    dev1, dev2 = session.bound["dev1"], session.bound["dev2"]
    fields = {"type": VIOMMU_TYPE_ARM_SMMUV3, "dev_id": dev1.id, "hwpt_id": session.ids["parent"]}
    yield answered("make a virtual SMMU", _made(session, "viommu", "VIOMMU_ALLOC", "out_viommu_id", **fields), 0)
    viommu = session.ids["viommu"]
    ret = _made(session, "vdevice", "VDEVICE_ALLOC", "out_vdevice_id", viommu_id=viommu, dev_id=dev1.id, virt_id=9)
    yield answered("dev1 is number 9 there", ret, 0)
    ret, _ = session.call("VDEVICE_ALLOC", viommu_id=viommu, dev_id=dev2.id, virt_id=9)
    yield answered("dev2 as well", ret, -EEXIST)
    fields = {"viommu_id": viommu, "type": VEVENTQ_TYPE_ARM_SMMUV3, "veventq_depth": 1}
    ret = _made(session, "events", "VEVENTQ_ALLOC", "out_veventq_id", **fields)
    yield answered("make a queue of events", ret, 0)
    fields = {"viommu_id": viommu, "type": 1, "nesting_parent_iova": IOVA, "length": PAGE}
    yield answered("make a hardware queue", session.call("HW_QUEUE_ALLOC", **fields)[0], -EOPNOTSUPP, "not this unit")
    yield answered("make a nested table of the virtual SMMU", vm.nested("nested", "viommu"), 0)
    yield answered("attach dev1", dev1.attach(session.ids["nested"])[0], 0)
    yield answered("destroy the virtual SMMU", session.call("DESTROY", id=viommu)[0], -EBUSY, "a table has it")
    yield answered("PASID 5 of dev1 to the parent", dev1.attach(session.ids["parent"], 5)[0], -EINVAL)
    dev1.detach()
    close(session, session.ctx.objects.get(session.ids["events"], VEventQueue))
    for name in ("events", "nested", "vdevice", "viommu"):
        yield answered(f"destroy the {name}", session.call("DESTROY", id=session.ids.pop(name))[0], 0)


def _pasids(session: Session, vm: VtdVirtualMachine) -> Iterator[Step]:
    dev1 = session.bound["dev1"]
    fields = {"dev_id": dev1.id, "hwpt_id": session.ids["parent"]}
    ret, _ = session.call("VIOMMU_ALLOC", type=VIOMMU_TYPE_ARM_SMMUV3, **fields)
    yield answered("make a virtual SMMU", ret, -EOPNOTSUPP, "there is no such unit on VT-d")
    yield answered("make a nested table for PASIDs", vm.nested("nested", flags=_PASID), 0)
    yield answered("make a table that is not", session.table("plain", "dev1", "ioas1"), 0)
    yield answered("attach dev1 to the parent", dev1.attach(session.ids["parent"])[0], 0)
    yield answered("PASID 5 to the other", dev1.attach(session.ids["plain"], 5)[0], -EINVAL)
    yield answered("PASID 5 to the nested table", dev1.attach(session.ids["nested"], 5)[0], 0)
    yield answered("replace dev1's by the other", dev1.replace(session.ids["plain"])[0], -EINVAL, "beside a PASID")
    yield answered("replace PASID 5's by the parent", dev1.replace(session.ids["parent"], 5)[0], 0)
    dev1.detach(5)
    dev1.detach()
