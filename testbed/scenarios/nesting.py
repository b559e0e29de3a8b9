# SPDX-License-Identifier: GPL-2.0-or-later
"""Nested tables end to end: a virtual machine's SMMUv3 tables, iommufd, the xen-iommu driver, Xen, and the unit.

User space runs a virtual machine.  The machine's memory is an IOAS, which Xen has as a context's stage 2; its virtual
SMMU has a table of context descriptors in that memory, and the real unit walks both.  Thread 003's subject comes along:
what belongs to the paging table belongs to the parent, whatever was attached first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from abi.errno import EBUSY, EINVAL, EIO
from guest_driver.arm_smmu_v3.ctx_desc import arm_smmu_make_cd
from guest_driver.iommufd.device import iommufd_device_bind
from guest_driver.iommufd.eventq import VEventQueue
from guest_driver.iommufd.release import Release
from guest_driver.iommufd.viommu import Viommu
from guest_driver.xen_nested import (
    HWPT_DATA_ARM_SMMUV3,
    INVALIDATE_DATA_ARM_SMMUV3,
    VEVENTQ_TYPE_ARM_SMMUV3,
    VIOMMU_TYPE_ARM_SMMUV3,
    deliver_faults,
)
from hypervisor.iommu.nesting import route_faults
from machine.iommu.unit import Fault
from testbed.iommufd_machine import X1, DeviceSpec, XenMachine
from testbed.scenarios.bench import BUFFER, SCRATCH, Session
from testbed.scenarios.step import Step, answered, held

GUEST_RAM: Final = 0x4000_0000
"""Where the virtual machine's memory begins, as its devices number it."""
CD, L0, L1, L2, L3, DATA = range(6)
"""Its pages: descriptors, four levels of stage 1, and what a process of its has."""
PAGES: Final = 6
VA: Final = 0x7F00_1234_5000
VIRTUAL_SID: Final = 0x700
_VALID_PAGE: Final = 0x743 | 1 << 11
_ARGUMENT: Final = SCRATCH + 4096
_TEXT: Final = b"guest's!"
_STE0: Final = 1 | 5 << 1
_S1DSS_SSID0: Final = 2


class VirtualMachine:
    """User space with a virtual machine on a session: guest memory at :data:`GUEST_RAM`, stage 1 tables in it."""

    def __init__(self, session: Session, device: str) -> None:
        self.session: Final = session
        self.device: Final = device
        self._has_argument = False
        """There is a page for what ioctls point to."""

    def boot(self) -> int:
        """Give the virtual machine its memory and write its tables: 0 or -errno."""
        ret = self._make_argument()
        if ret:
            return ret
        ret, _ = self.session.call(
            "IOAS_MAP",
            flags=7,
            ioas_id=self.session.ids["ioas1"],
            user_va=BUFFER,
            length=PAGES * 4096,
            iova=GUEST_RAM,
        )
        for word, value in enumerate(arm_smmu_make_cd(self.address(L0) >> 12, 1, 5)):
            self.write(CD, word, value)
        for table, below, shift in ((L0, L1, 39), (L1, L2, 30), (L2, L3, 21)):
            self.write(table, VA >> shift & 511, self.address(below) | 3)
        self.map(DATA)
        self.session.mm.write(BUFFER + DATA * 4096, _TEXT)
        return ret

    def _make_argument(self) -> int:
        ret = 0 if self._has_argument else self.session.mm.mmap(_ARGUMENT, 4096)
        self._has_argument = not ret
        return ret

    @staticmethod
    def address(page: int) -> int:
        """Its own physical address of one of its pages."""
        return GUEST_RAM + page * 4096

    def write(self, page: int, word: int, value: int) -> None:
        self.session.mm.write(BUFFER + page * 4096 + 8 * word, value.to_bytes(8, "little"))

    def map(self, page: int | None) -> None:
        """Let :data:`VA` lead to a page of the virtual machine, or nowhere."""
        self.write(L3, VA >> 12 & 511, 0 if page is None else self.address(page) | _VALID_PAGE)

    def nested(self, name: str, over: str, cdmax: int = 0) -> int:
        """Make a nested table over ``over``: a parent or a vIOMMU."""
        ret = self._make_argument()
        if ret:
            return ret
        low = _STE0 | self.address(CD) | cdmax << 59
        self.session.mm.write(_ARGUMENT, low.to_bytes(8, "little") + _S1DSS_SSID0.to_bytes(8, "little"))
        ret, out = self.session.call(
            "HWPT_ALLOC",
            dev_id=self.session.bound[self.device].id,
            pt_id=self.session.ids[over],
            data_type=HWPT_DATA_ARM_SMMUV3,
            data_len=16,
            data_uptr=_ARGUMENT,
        )
        if not ret:
            self.session.ids[name] = out["out_hwpt_id"]
        return ret

    def invalidate(self, over: str, *commands: tuple[int, int]) -> tuple[int, int]:
        """(0 or -errno, how many the kernel says were done)."""
        raw = b"".join(word.to_bytes(8, "little") for command in commands for word in command)
        self.session.mm.write(_ARGUMENT, raw)
        ret, out = self.session.call(
            "HWPT_INVALIDATE",
            hwpt_id=self.session.ids[over],
            data_uptr=_ARGUMENT,
            data_type=INVALIDATE_DATA_ARM_SMMUV3,
            entry_len=16,
            entry_num=len(commands),
        )
        return ret, out["entry_num"]


def tlbi(va: int) -> tuple[int, int]:
    """CMD_TLBI_NH_VA for the virtual machine's ASID 1."""
    return 0x12 | 1 << 48, va & -4096


def cfgi_cd(sid: int) -> tuple[int, int]:
    return 0x05 | sid << 32, 1


def start(release: Release) -> tuple[Session, XenMachine]:
    """Two devices in groups of their own, bound to a process, on a unit with both stages."""
    machine = XenMachine("smmuv3", [DeviceSpec("dev1"), DeviceSpec("dev2", group=1)], profile=X1)
    session = Session(machine, release)
    for name, dev in session.devices.items():
        idev = iommufd_device_bind(session.ctx, dev)
        assert not isinstance(idev, int)
        session.bound[name] = idev
    session.ioas("ioas1")
    return session, machine


def seen(machine: XenMachine, session: Session, device: str = "dev1", va: int = VA) -> str:
    """What the device reads, or the fault's name."""
    answer = machine.fabric.port(session.devices[device].pci.sbdf).read(va, 8)
    return answer.name if isinstance(answer, Fault) else answer.decode(errors="replace")


def contexts(machine: XenMachine) -> list[str]:
    """Xen's nested contexts and their parents as lines."""
    iommu = machine.testbed.dom0.iommu
    assert iommu is not None
    lines = []
    for number, context in iommu.contexts.items():
        kind = "stage 2" if context.parent is None else f"nested over {context.parent.number}"
        if context.children or context.parent is not None:
            lines.append(
                f"  Xen: context {number}: {kind}, {len(context.devices)} devices, {context.children} nested over it"
            )
    return lines


def through_viommu(place: str, release: Release) -> Iterator[Step]:
    """Make, use, invalidate, fault, replace, destroy."""
    session, machine = start(release)
    vm = VirtualMachine(session, "dev1")
    dev1 = session.bound["dev1"]
    yield answered("make a parent, a stage 2 of Xen's", session.table("parent", "dev1", "ioas1", flags=1), 0)
    yield answered("the virtual machine's memory is mapped in it", vm.boot(), 0)
    ret, out = session.call("VIOMMU_ALLOC", type=VIOMMU_TYPE_ARM_SMMUV3, dev_id=dev1.id, hwpt_id=session.ids["parent"])
    session.ids["viommu"] = out["out_viommu_id"]
    yield answered("make a virtual SMMU over it", ret, 0)
    ret, _ = session.call("VDEVICE_ALLOC", viommu_id=session.ids["viommu"], dev_id=dev1.id, virt_id=VIRTUAL_SID)
    yield answered(f"its guest knows dev1 as stream {VIRTUAL_SID:#x}", ret, 0)
    events = _events(session)
    yield answered("make the nested table", vm.nested("nested", "viommu"), 0, state=contexts(machine))
    yield answered(
        "attach dev1", dev1.attach(session.ids["nested"])[0], 0, state=[*session.state(), *contexts(machine)]
    )
    yield held("DMA goes through both stages", seen(machine, session) == _TEXT.decode(), seen(machine, session))

    vm.map(None)
    yield held("the guest unmaps: what the unit remembers still serves", seen(machine, session) == _TEXT.decode())
    yield _invalidated("its invalidation, through HWPT_INVALIDATE", vm.invalidate("viommu", tlbi(VA)), (0, 1))
    yield held("now the unit faults", seen(machine, session) == "F_TRANSLATION")
    viommu = session.ctx.objects.get(session.ids["viommu"], Viommu)
    assert viommu is not None
    delivered = deliver_faults(machine.driver, viommu)
    record = events.events[-1][1] or b""
    named = int.from_bytes(record[4:8], "little") == VIRTUAL_SID and int.from_bytes(record[16:24], "little") == VA
    yield held(
        "the fault of the guest's stage reaches the guest, under its own stream id and address",
        delivered == 1 and named and not machine.testbed.xen.faults,
    )
    wrong = vm.invalidate("viommu", cfgi_cd(VIRTUAL_SID), cfgi_cd(0x99), tlbi(VA))
    yield _invalidated("three commands, the second for a stream that is not its own", wrong, (-EIO, 1))
    wrong = vm.invalidate("viommu", tlbi(VA), (0x28, 0))
    yield _invalidated("a command that is Xen's alone to give", wrong, (-EIO, 1))

    vm.map(DATA)
    yield held("the guest maps again", seen(machine, session) == _TEXT.decode())
    ret, _ = session.call("IOAS_UNMAP", ioas_id=session.ids["ioas1"], iova=GUEST_RAM, length=PAGES * 4096)
    yield answered("user space takes the memory away", ret, 0)
    yield held(
        "nothing is reached, although the guest's tables and caches say so", seen(machine, session).startswith("F_")
    )
    route_faults(machine.testbed.xen)
    ours = len(machine.testbed.xen.faults)
    yield held("that fault is Xen's", ours == 1 and deliver_faults(machine.driver, viommu) == 0)

    yield answered("destroy the parent", session.call("DESTROY", id=session.ids["parent"])[0], -EBUSY)
    yield answered("replace by the parent", dev1.replace(session.ids["parent"])[0], 0, state=contexts(machine))
    yield answered("destroy the nested table", session.call("DESTROY", id=session.ids["nested"])[0], 0)
    session.ctx.exit()
    iommu = machine.testbed.dom0.iommu
    assert iommu is not None
    left = [context for context in iommu.contexts.values() if context.parent is not None or context.children]
    yield held("close the file: no nested context is left", not left and not machine.kernel.printk.warnings)


def _invalidated(text: str, answer: tuple[int, int], expected: tuple[int, int]) -> Step:
    """A step whose result is 0 or -errno and how many commands were done."""
    ret, done = answer
    step = answered(text, ret, expected[0], f"{done} done")
    return replace(step, ok=answer == expected)


def _events(session: Session) -> VEventQueue:
    ret, out = session.call(
        "VEVENTQ_ALLOC", viommu_id=session.ids["viommu"], type=VEVENTQ_TYPE_ARM_SMMUV3, veventq_depth=8
    )
    queue = session.ctx.objects.get(out["out_veventq_id"], VEventQueue)
    assert not ret and queue is not None
    return queue


def refused(place: str, release: Release) -> Iterator[Step]:
    """Entries and tables that user space may not have."""
    session, machine = start(release)
    vm = VirtualMachine(session, "dev1")
    yield answered("make a plain table", session.table("plain", "dev1", "ioas1"), 0)
    yield answered("nest over a table that was not made for it", vm.nested("nested", "plain"), -EINVAL)
    yield answered("make a parent", session.table("parent", "dev1", "ioas1", flags=1), 0)
    yield answered("nest before the table is mapped in it", vm.nested("nested", "parent"), -EINVAL)
    yield answered("map it", vm.boot(), 0)
    yield answered("more descriptors than the unit has PASIDs", vm.nested("nested", "parent", cdmax=20), -EINVAL)
    yield answered("now", vm.nested("nested", "parent", cdmax=4), 0)
    yield answered("attach", session.bound["dev1"].attach(session.ids["nested"])[0], 0, state=contexts(machine))
    yield held("dev1 reads its page", seen(machine, session) == _TEXT.decode())
    vm.write(L0, VA >> 39 & 511, 0x1000 | 3)
    vm.invalidate("nested", (0x10, 0))
    yield held("a table in memory that is not the guest's is a fault", seen(machine, session) == "F_TRANSLATION")
    vm.write(CD, 0, (1 << 64) - 1)
    vm.invalidate("nested", cfgi_cd(session.devices["dev1"].pci.sbdf & 0xFFFF))
    yield held("a descriptor of nonsense is a fault", seen(machine, session) == "C_BAD_CD")
    yield held("dev2 is none the wiser", seen(machine, session, "dev2", 0x1000).startswith("F_"))
    session.ctx.exit()
    yield held("nothing warns", not machine.kernel.printk.warnings)
