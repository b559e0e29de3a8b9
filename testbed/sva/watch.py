# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with SVA under observation: each operation as a step, with every store to an entry that it made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from guest_driver.arm_smmu_v3.ctx_desc import CD_BYTES, CTXDESC_L2_ENTRIES
from guest_driver.arm_smmu_v3.smmu import BareSmmu
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IOMMU_DOMAIN_BLOCKED, IommuDomain
from guest_driver.linux.iommu_attach import iommu_attach_group, iommu_detach_group
from guest_driver.linux.mutex import Mutex
from guest_driver.port import GuestRam
from guest_driver.sva.iommu_sva import IommuSva, iommu_sva_bind_device, iommu_sva_unbind_device
from guest_driver.sva.mm import MmStruct, mm_alloc, mmput
from machine.iommu.replacement import Replacement
from machine.iommu.smmuv3.cd import Cd0
from testbed.sva.linux import Adjust, SmmuLinux
from testbed.sva.stores import Entry, Event, Store, StoreLog
from testbed.sva.xen import SmmuXen

VA: Final = 0x7F00_0000_0000
"""Where a process has its pages."""


class Place(NamedTuple):
    """What an entry is: an STE, the CD of a PASID, or a first-level descriptor; whose."""

    kind: str
    dev: Device
    ssid: int = 0

    def __str__(self) -> str:
        return f"the {self.kind} of {self.dev.name}" + (f" PASID {self.ssid}" if self.ssid else "")


@dataclass(slots=True)
class Step:
    """One operation: what it answered, and what it did to entries."""

    name: str
    asked: tuple[Device, ...]
    """The devices that it is about: the members of a group."""
    start: int = 0
    """Number of the first event."""
    end: int = 0
    """Number after the last."""
    result: Any = 0
    events: list[Event] = field(default_factory=list)
    glimpses: list[int] = field(default_factory=list)
    """Numbers of events after which a lock was let go."""
    unlisted: list[str] = field(default_factory=list)
    """Descriptors that became valid while their domain did not know of them."""
    unready: list[str] = field(default_factory=list)
    """Leaves that were published before their content was there."""
    mm: MmStruct | None = None
    dev: Device | None = None
    recorded: int = 0
    """Events that the unit has recorded meanwhile."""

    @property
    def failed(self) -> bool:
        return isinstance(self.result, int) and self.result < 0

    def addresses(self) -> Iterator[int]:
        """Entries that were stored to."""
        yield from dict.fromkeys(event.address for event in self.events if isinstance(event, Store))


class Watch:
    """``adjust`` changes the driver, as a defect does; ``xen``: in a guest, where stream entries are not its own."""

    def __init__(
        self,
        adjust: Adjust | None = None,
        *,
        xen: bool = False,
        two_level: bool = True,
        replacement: Replacement | None = None,
    ) -> None:
        logs: list[StoreLog] = []

        def logged(ram: GuestRam) -> GuestRam:
            logs.append(StoreLog(ram))
            return logs[0]

        self.machine: Final[SmmuLinux | SmmuXen] = (
            SmmuXen(adjust, ram=logged)
            if xen
            else SmmuLinux(adjust, two_level=two_level, replacement=replacement, ram=logged)
        )
        self.log: Final = logs[0]
        self.log.after = self._stored
        self.handles: Final[list[IommuSva]] = []
        self.processes: Final[list[MmStruct]] = []
        self.domains: Final[list[IommuDomain]] = []
        self.steps: Final[list[Step]] = []
        self.while_unlocked: Callable[[Mutex], object] | None = None
        """What another CPU does when a lock is let go; once."""
        self.machine.port.confirmed = self.log.sync
        self.machine.kernel.unlocked = self._unlocked

    # -- operations

    def process(self, pages: int = 2, text: bytes = b"process") -> MmStruct:
        """A process whose pages at :data:`VA` begin with ``text``."""
        mm = mm_alloc(self.machine.kernel)
        if isinstance(mm, int) or mm.mmap(VA, pages):
            raise ValueError("the kernel has no memory for a process")
        for page in range(pages):
            mm.write(VA + (page << 12), text.ljust(8, b" ")[:8])
        self.processes.append(mm)
        return mm

    def bind(self, dev: Device, mm: MmStruct) -> Step:
        step = self.do("bind", dev, lambda: iommu_sva_bind_device(dev, mm), mm=mm)
        if isinstance(step.result, IommuSva) and step.result not in self.handles:
            self.handles.append(step.result)
        return step

    def unbind(self, handle: IommuSva) -> Step:
        step = self.do("unbind", handle.dev, lambda: iommu_sva_unbind_device(handle), mm=handle.mm)
        if not handle.users:
            self.handles.remove(handle)
        return step

    def exit(self, mm: MmStruct) -> Step:
        """The process ends, with its devices still bound."""
        self.processes.remove(mm)
        asked = [dev for handle in self.handles if handle.mm is mm for dev in members(handle.dev)]
        return self.do("exit", *asked, operation=lambda: mmput(mm), mm=mm)

    def attach(self, dev: Device, domain: IommuDomain) -> Step:
        """Move the group's requests without a PASID to ``domain``."""
        group = dev.iommu_group
        assert group is not None

        def operation() -> int:
            if domain is group.default_domain or domain.type == IOMMU_DOMAIN_BLOCKED:
                assert group.domain is not None
                iommu_detach_group(group.domain, group)
                return 0
            return iommu_attach_group(domain, group)

        return self.do("attach", dev, operation)

    def do(
        self, name: str, *asked: Any, operation: Callable[[], Any] | None = None, mm: MmStruct | None = None
    ) -> Step:
        """Run ``operation`` (or the last of ``asked``) as a step about the devices in ``asked`` and their groups."""
        devices = [item for item in asked if isinstance(item, Device)]
        run = operation or asked[-1]
        group = tuple(dict.fromkeys(member for dev in devices for member in members(dev)))
        step = Step(name, group, mm=mm, dev=devices[0] if devices else None)
        self.machine.port.take_events()
        self.steps.append(step)
        step.start = len(self.log.events)
        step.result = run()
        step.end = len(self.log.events)
        step.events = [e for e in self.log.events[step.start :] if not isinstance(e, Store) or self.place(e.address)]
        step.recorded = len(self.machine.port.take_events())
        return step

    # -- observation

    def place(self, address: int) -> Place | None:
        """What the entry at ``address`` is; ``None`` for memory that holds none."""
        for dev, master in self.machine.smmu.masters.items():
            port = self.machine.port
            if isinstance(port, BareSmmu) and any(address == port.ste_address(sid) for sid in master.sids):
                return Place("ste", dev)
            table = master.cd_table
            if table.leaves:
                for index, leaf in table.leaves.items():
                    if leaf <= address < leaf + CD_BYTES * CTXDESC_L2_ENTRIES:
                        return Place("cd", dev, index * CTXDESC_L2_ENTRIES + (address - leaf) // CD_BYTES)
            elif table.address and not table.s1fmt and table.address <= address < table.address + (4096 << table.order):
                return Place("cd", dev, (address - table.address) // CD_BYTES)
        return None

    def entry(self, address: int) -> Entry:
        return self.log.entry(address)

    def dma(self, dev: Device, va: int = VA, pasid: int | None = None) -> str:
        """What the device reads there, or the name of the fault."""
        answer = self.machine.dma(dev, va, pasid)
        return answer.decode(errors="replace").strip() if isinstance(answer, bytes) else answer.name

    def _unlocked(self, mutex: Mutex) -> None:
        if self.steps:
            step = self.steps[-1]
            step.glimpses.append(len(self.log.events))
        other, self.while_unlocked = self.while_unlocked, None
        if other is not None and other(mutex) is False:
            self.while_unlocked = other  # not this lock: wait for another

    def _stored(self, store: Store) -> None:
        """Look at once at what must hold at the moment of a store."""
        if not self.steps:
            return
        step = self.steps[-1]
        for dev, master in self.machine.smmu.masters.items():
            table = master.cd_table
            if table.s1fmt and table.address <= store.address < table.address + (4096 << table.order):
                leaf = store.after & -4096
                words = self.log.read(leaf, CD_BYTES * CTXDESC_L2_ENTRIES) if store.after & 1 else b""
                if any(words):
                    step.unready.append(f"{dev.name}: a leaf is published with something in it already")
        place = self.place(store.address)
        if place is None or place.kind != "cd" or store.word or not Cd0.v.get(store.after):
            return
        domain = self.machine.smmu.asids.get(Cd0.asid.get(store.after))
        master = self.machine.smmu.masters[place.dev]
        if domain is None or (master, place.ssid) not in domain.devices:
            step.unlisted.append(f"{place.dev.name} PASID {place.ssid}")


def members(dev: Device) -> list[Device]:
    """The devices of the group of ``dev``."""
    return [dev] if dev.iommu_group is None else dev.iommu_group.devices
