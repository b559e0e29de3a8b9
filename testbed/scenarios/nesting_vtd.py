# SPDX-License-Identifier: GPL-2.0-or-later
"""The same on VT-d in scalable mode: a guest's x86-64 table as first stage, and contexts by PASID."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from abi.errno import EBUSY, EINVAL
from guest_driver.iommufd.device import iommufd_device_bind
from guest_driver.iommufd.release import Release
from guest_driver.xen_nested import HWPT_ALLOC_NEST_PARENT, HWPT_ALLOC_PASID
from guest_driver.xen_nested_vtd import HWPT_DATA_VTD_S1, INVALIDATE_DATA_VTD_S1
from hypervisor.iommu.nesting import route_faults
from machine.dma import PasidPort
from machine.iommu.unit import Fault
from testbed.iommufd_machine import X1, DeviceSpec, XenMachine
from testbed.scenarios.bench import BUFFER, SCRATCH, Session
from testbed.scenarios.nesting import contexts
from testbed.scenarios.step import Step, answered, held

GUEST_RAM: Final = 0x4000_0000
L4, L3, L2, L1, DATA, OTHER = range(6)
VA: Final = 0x5F00_1234_5000
PASID: Final = 5
_PRESENT: Final = 7
_ARGUMENT: Final = SCRATCH + 4096
_EVERYTHING: Final = (1 << 64) - 1


class VtdVirtualMachine:
    """User space with a virtual machine: its memory, and a four-level table in it."""

    def __init__(self, session: Session, device: str) -> None:
        self.session: Final = session
        self.device: Final = device

    def boot(self) -> int:
        """Give it its memory and write its table: 0 or -errno."""
        ret = self.session.mm.mmap(_ARGUMENT, 4096)
        if ret:
            return ret
        ret, _ = self.session.call(
            "IOAS_MAP", flags=7, ioas_id=self.session.ids["ioas1"], user_va=BUFFER, length=6 * 4096, iova=GUEST_RAM
        )
        for table, below, shift in ((L4, L3, 39), (L3, L2, 30), (L2, L1, 21)):
            self.write(table, VA >> shift & 511, GUEST_RAM + below * 4096 | _PRESENT)
        self.map(DATA)
        self.session.mm.write(BUFFER + DATA * 4096, b"guest's!")
        self.session.mm.write(BUFFER + OTHER * 4096, b"another.")
        return ret

    def write(self, page: int, word: int, value: int) -> None:
        self.session.mm.write(BUFFER + page * 4096 + 8 * word, value.to_bytes(8, "little"))

    def map(self, page: int | None) -> None:
        self.write(L1, VA >> 12 & 511, 0 if page is None else GUEST_RAM + page * 4096 | _PRESENT)

    def nested(self, name: str, width: int = 48, flags: int = 0) -> int:
        self.session.mm.write(_ARGUMENT, struct.pack("<QQLL", 0, GUEST_RAM + L4 * 4096, width, 0))
        ret, out = self.session.call(
            "HWPT_ALLOC",
            flags=flags,
            dev_id=self.session.bound[self.device].id,
            pt_id=self.session.ids["parent"],
            data_type=HWPT_DATA_VTD_S1,
            data_len=24,
            data_uptr=_ARGUMENT,
        )
        if not ret:
            self.session.ids[name] = out["out_hwpt_id"]
        return ret

    def invalidate(self, *ranges: tuple[int, int]) -> tuple[int, int]:
        """(address, pages) each: 0 or -errno, and how many were done."""
        self.session.mm.write(_ARGUMENT, b"".join(struct.pack("<QQLL", *each, 0, 0) for each in ranges))
        ret, out = self.session.call(
            "HWPT_INVALIDATE",
            hwpt_id=self.session.ids["nested"],
            data_uptr=_ARGUMENT,
            data_type=INVALIDATE_DATA_VTD_S1,
            entry_len=24,
            entry_num=len(ranges),
        )
        return ret, out["entry_num"]


def _seen(machine: XenMachine, session: Session, pasid: int | None = None, device: str = "dev1") -> str:
    sbdf = session.devices[device].pci.sbdf
    port = machine.fabric.port(sbdf) if pasid is None else PasidPort(machine.fabric, sbdf, pasid)
    answer = port.read(VA, 8)
    return answer.name if isinstance(answer, Fault) else answer.decode(errors="replace")


def _start(release: Release) -> tuple[Session, XenMachine]:
    """dev1, which has PASIDs, and dev2 in a group of its own, bound to a process, on a unit with both stages."""
    machine = XenMachine("vtd", [DeviceSpec("dev1", pasids=64), DeviceSpec("dev2", group=1)], profile=X1)
    session = Session(machine, release)
    for name, dev in session.devices.items():
        idev = iommufd_device_bind(session.ctx, dev)
        assert not isinstance(idev, int)
        session.bound[name] = idev
    session.ioas("ioas1")
    return session, machine


def first_stage(place: str, release: Release) -> Iterator[Step]:
    """Make, use, invalidate, fault, a PASID, destroy."""
    session, machine = _start(release)
    dev1 = session.bound["dev1"]
    vm = VtdVirtualMachine(session, "dev1")
    flags = HWPT_ALLOC_NEST_PARENT | HWPT_ALLOC_PASID
    yield answered("make a parent, a second stage of Xen's", session.table("parent", "dev1", "ioas1", flags=flags), 0)
    yield answered("the virtual machine's memory is mapped in it", vm.boot(), 0)
    yield answered("a table of five levels, which Xen does not take", vm.nested("nested", width=57), -EINVAL)
    yield answered("make the nested table", vm.nested("nested", flags=HWPT_ALLOC_PASID), 0, state=contexts(machine))
    yield answered(
        "attach dev1", dev1.attach(session.ids["nested"])[0], 0, state=[*session.state(), *contexts(machine)]
    )
    yield held("DMA goes through both stages", _seen(machine, session) == "guest's!", _seen(machine, session))
    vm.map(OTHER)
    yield held("the guest maps another page: the old one is cached", _seen(machine, session) == "guest's!")
    yield held("its invalidation", vm.invalidate((VA, 1)) == (0, 1) and _seen(machine, session) == "another.")
    yield held("three, the second misaligned: one done", vm.invalidate((VA, 3), (VA + 8, 1), (VA, 1)) == (-EINVAL, 1))
    vm.map(None)
    yield held("everything is invalidated", vm.invalidate((0, _EVERYTHING)) == (0, 1))
    yield held("the first stage faults", _seen(machine, session) == "first-stage entry not present")
    ret, fault = machine.driver.call("next_fault", *(0,) * 8)
    yield held("that is the guest's to know", not ret and fault[6] == VA and not machine.testbed.xen.faults)

    ret = dev1.attach(session.ids["parent"], PASID)[0]
    yield answered(f"PASID {PASID} of dev1 goes to the parent itself", ret, 0)
    yield held(
        "it has another address space than requests without", _seen(machine, session, PASID).startswith("second")
    )
    vm.map(DATA)
    ret = dev1.replace(session.ids["nested"], PASID)[0]
    yield answered("replace it by the nested table", ret, 0)
    yield held(
        "both go through the guest's table", _seen(machine, session, PASID) == _seen(machine, session) == "guest's!"
    )
    dev1.detach(PASID)
    yield held("detached: refused", _seen(machine, session, PASID) == "PASID table entry not present")

    machine.testbed.xen.faults.clear()
    ret, _ = session.call("IOAS_UNMAP", ioas_id=session.ids["ioas1"], iova=GUEST_RAM, length=6 * 4096)
    yield answered("user space takes the memory away", ret, 0)
    why = _seen(machine, session)
    yield held("nothing is reached", "second" in why, why)
    route_faults(machine.testbed.xen)
    told = machine.driver.call("next_fault", *(0,) * 8)[0] == 0
    yield held("that fault is Xen's", bool(machine.testbed.xen.faults) and not told)
    yield answered("destroy the parent", session.call("DESTROY", id=session.ids["parent"])[0], -EBUSY)
    session.ctx.exit()
    iommu = machine.testbed.dom0.iommu
    assert iommu is not None
    left = [context for context in iommu.contexts.values() if context.parent is not None or context.children]
    yield held("close the file: no nested context is left", not left and not machine.kernel.printk.warnings)


def refused(place: str, release: Release) -> Iterator[Step]:
    """Tables and entries that user space may not have."""
    session, machine = _start(release)
    vm = VtdVirtualMachine(session, "dev1")
    yield answered("make a plain table", session.table("plain", "dev1", "ioas1"), 0)
    session.ids["parent"] = session.ids["plain"]
    yield answered("the guest's memory is mapped", vm.boot(), 0)
    yield answered("nest over a table that was not made for it", vm.nested("nested"), -EINVAL)
    session.ioas("ioas1")
    ret = session.table("parent", "dev1", "ioas1", flags=HWPT_ALLOC_NEST_PARENT)
    yield answered("make a parent over an address space of its own", ret, 0)
    yield answered("nest before the table is mapped in it", vm.nested("nested"), -EINVAL)
    ret, _ = session.call(
        "IOAS_MAP", flags=7, ioas_id=session.ids["ioas1"], user_va=BUFFER, length=6 * 4096, iova=GUEST_RAM
    )
    yield answered("map it", ret, 0)
    yield answered("a table of five levels, which Xen does not take", vm.nested("nested", width=57), -EINVAL)
    yield answered("now", vm.nested("nested"), 0)
    yield answered("attach", session.bound["dev1"].attach(session.ids["nested"])[0], 0, state=contexts(machine))
    yield held("dev1 reads its page", _seen(machine, session) == "guest's!")
    vm.write(L4, VA >> 39 & 511, 0x1000 | _PRESENT)
    vm.invalidate((0, _EVERYTHING))
    why = _seen(machine, session)
    yield held("a table in memory that is not the guest's is a fault", "second" in why, why)
    vm.write(L4, VA >> 39 & 511, _EVERYTHING)
    vm.invalidate((0, _EVERYTHING))
    why = _seen(machine, session)
    yield held("an entry of nonsense is a fault", "reserved" in why, why)
    why = _seen(machine, session, device="dev2")
    yield held("dev2 is none the wiser", why not in ("guest's!", "another."), why)
    session.ctx.exit()
    yield held("nothing warns", not machine.kernel.printk.warnings)
