# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of object that iommufd has, made, used and given back: what a virtual machine monitor does in its life.

Its main use is with allocations that fail (``pviommu scenario fail-nth objects``), as upstream's iommufd_fail_nth does.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack, unpack

from abi.errno import EBUSY, EEXIST, EINVAL, EIO, ENOENT
from guest_driver.iommufd.eventq import FAULT, FaultQueue, VEventQueue
from guest_driver.iommufd.mock_viommu import HW_QUEUE_TYPE, VEVENT_TYPE, VIOMMU_TYPE, trigger_event
from guest_driver.iommufd.release import Release
from guest_driver.iommufd.viommu import Viommu
from guest_driver.linux.io_pgfault import RESP_SUCCESS, IopfFault
from guest_driver.linux.mock_domain import DATA_TYPE, INVALIDATE_TYPE
from testbed.iommufd_machine import MOCK, DeviceSpec, MockMachine
from testbed.scenarios import objects_xen
from testbed.scenarios.bench import SCRATCH, Session
from testbed.scenarios.step import Step, answered, held

IOVA = 0x400_0000
PAGE = 0x1000
DATA = SCRATCH + PAGE
_SPECS = (DeviceSpec("dev1", 0, pasids=1 << 8), DeviceSpec("dev2", 1))


def life(place: str, release: Release) -> Iterator[Step]:
    """Files in memory, a queue of page requests, a vIOMMU with all that belongs to it, PASIDs."""
    if place != MOCK:
        yield from objects_xen.life(place, release)
        return
    machine = MockMachine(_SPECS)
    session = Session(machine, release)
    session.mm.mmap(DATA, PAGE)
    for name in ("dev1", "dev2"):
        yield answered(f"bind {name}", session.bind(name), 0)
    yield answered("make ioas1", session.ioas("ioas1"), 0)
    yield from objects_xen.files(session)
    yield answered("make parent", session.table("parent", "dev1", "ioas1", flags=1), 0)
    yield from _page_requests(session, machine)
    yield from _viommu(session, machine)
    yield from _pasids(session)
    yield from session.end()


def _made(session: Session, name: str, ioctl: str, field: str, **fields: int) -> int:
    ret, out = session.call(ioctl, **fields)
    if not ret:
        session.ids[name] = out[field]
    return ret


def _page_requests(session: Session, machine: MockMachine) -> Iterator[Step]:
    ret = _made(session, "queue", "FAULT_QUEUE_ALLOC", "out_fault_id")
    yield answered("make a queue of page requests", ret, 0)
    session.mm.write(DATA, pack("<I", 7))
    nested = {"data_type": DATA_TYPE, "data_len": 4, "data_uptr": DATA}
    fields = {"dev_id": session.bound["dev1"].id, "flags": 4, "fault_id": session.ids["queue"], **nested}
    ret = _made(session, "nested", "HWPT_ALLOC", "out_hwpt_id", pt_id=session.ids["parent"], **fields)
    yield answered("make a nested table with it", ret, 0)
    yield answered("attach dev1", session.bound["dev1"].attach(session.ids["nested"])[0], 0)
    dev = session.devices["dev1"]
    yield answered("dev1 asks for a page", machine.mock.request_page(dev, IopfFault(IOVA, 1, 5)), 0)
    queue = session.ctx.objects.get(session.ids["queue"], FaultQueue)
    assert queue is not None
    yield held("read it", queue.read(session.mm, DATA, FAULT.size) == FAULT.size and not queue.readable())
    *_, cookie = unpack(FAULT.format, session.mm.read(DATA, FAULT.size) or b"")
    session.mm.write(DATA, pack("<II", cookie, RESP_SUCCESS))
    yield held("answer it", queue.write(session.mm, DATA, 8) == 8 and machine.mock.responses[-1] == (dev.name, 5, 0))
    yield answered("answer it again", queue.write(session.mm, DATA, 8), -EINVAL, "once")
    session.mm.write(DATA, pack("<IIII", 0, 2, 0, 4))
    fields = {"data_type": INVALIDATE_TYPE, "entry_len": 8, "entry_num": 2, "data_uptr": DATA}
    ret, out = session.call("HWPT_INVALIDATE", hwpt_id=session.ids["nested"], **fields)
    yield answered("invalidate two words, the second of which there is none", ret, -EINVAL, f"{out['entry_num']} done")
    session.bound["dev1"].detach()
    yield answered("destroy the queue", session.call("DESTROY", id=session.ids["queue"])[0], -EBUSY, "a table has it")
    yield answered("destroy the nested table", session.call("DESTROY", id=session.ids["nested"])[0], 0)
    objects_xen.close(session, queue)
    yield answered("close and destroy the queue", session.call("DESTROY", id=session.ids["queue"])[0], 0)


def _viommu(session: Session, machine: MockMachine) -> Iterator[Step]:
    dev1 = session.bound["dev1"]
    fields = {"dev_id": dev1.id, "hwpt_id": session.ids["parent"]}
    ret = _made(session, "viommu", "VIOMMU_ALLOC", "out_viommu_id", type=VIOMMU_TYPE, **fields)
    yield answered("make a vIOMMU", ret, 0)
    viommu = session.ids["viommu"]
    ret = _made(session, "vdevice", "VDEVICE_ALLOC", "out_vdevice_id", viommu_id=viommu, dev_id=dev1.id, virt_id=9)
    yield answered("dev1 is number 9 there", ret, 0)
    ret, _ = session.call("VDEVICE_ALLOC", viommu_id=viommu, dev_id=session.bound["dev2"].id, virt_id=9)
    yield answered("dev2 as well", ret, -EEXIST)
    session.mm.write(DATA, pack("<I", 7))
    fields = {"dev_id": dev1.id, "data_type": DATA_TYPE, "data_len": 4, "data_uptr": DATA}
    ret = _made(session, "guest table", "HWPT_ALLOC", "out_hwpt_id", pt_id=viommu, **fields)
    yield answered("make a nested table of the vIOMMU", ret, 0)
    ret = session.bound["dev2"].attach(session.ids["guest table"])[0]
    yield answered("attach dev2", ret, -ENOENT, "it has no number there")
    yield answered("attach dev1", dev1.attach(session.ids["guest table"])[0], 0)
    fields = {"viommu_id": viommu, "type": VEVENT_TYPE, "veventq_depth": 1}
    ret = _made(session, "events", "VEVENTQ_ALLOC", "out_veventq_id", **fields)
    yield answered("make a queue of events", ret, 0)
    owner = session.ctx.objects.get(viommu, Viommu)
    queue = session.ctx.objects.get(session.ids["events"], VEventQueue)
    assert owner is not None and queue is not None
    trigger_event(owner, session.devices["dev1"])
    trigger_event(owner, session.devices["dev1"])
    read = (queue.read(session.mm, DATA, 12), queue.read(session.mm, DATA, 12))
    yield held("two events, one place: the second is counted as lost", read == (12, 8))
    yield answered("map a page for hardware queues", session.map("ioas1", IOVA), 0)
    fields = {"viommu_id": viommu, "type": HW_QUEUE_TYPE, "nesting_parent_iova": IOVA, "length": PAGE}
    yield answered("make queue 1", session.call("HW_QUEUE_ALLOC", index=1, **fields)[0], -EIO, "0 comes first")
    ret = _made(session, "hwq", "HW_QUEUE_ALLOC", "out_hw_queue_id", index=0, **fields)
    yield answered("make queue 0", ret, 0)
    yield answered("unmap its page", session.unmap("ioas1", IOVA, PAGE), -EBUSY, "hardware reads it")
    yield answered("destroy it", session.call("DESTROY", id=session.ids["hwq"])[0], 0)
    yield held("unmap its page", session.unmap("ioas1", IOVA, PAGE) == PAGE)
    dev1.detach()
    objects_xen.close(session, queue)
    for name in ("events", "guest table", "vdevice", "viommu"):
        yield answered(f"destroy the {name}", session.call("DESTROY", id=session.ids.pop(name))[0], 0)


def _pasids(session: Session) -> Iterator[Step]:
    dev1 = session.bound["dev1"]
    for name in ("a", "b"):
        yield answered(f"make table {name} for PASIDs", session.table(name, "dev1", "ioas1", flags=8), 0)
    yield answered("make a table that is not", session.table("plain", "dev1", "ioas1"), 0)
    yield answered("attach dev1 to a", dev1.attach(session.ids["a"])[0], 0)
    yield answered("PASID 5 to the other", dev1.attach(session.ids["plain"], 5)[0], -EINVAL)
    yield answered("PASID 5 to b", dev1.attach(session.ids["b"], 5)[0], 0)
    yield answered("replace dev1's by the other", dev1.replace(session.ids["plain"])[0], -EINVAL, "beside a PASID")
    yield answered("replace PASID 5's by a", dev1.replace(session.ids["a"], 5)[0], 0)
    dev1.detach(5)
    dev1.detach()
