# SPDX-License-Identifier: GPL-2.0-or-later
"""Our VT-d software half on a machine whose IOMMU is QEMU's and ours in lockstep, and the steps a program may take.

Contexts are named by numbers, devices by their place in the row (0 is 00:03.0).

Memory: the heap for tables below 1 GiB, frames that are mapped from :data:`DATA_FIRST` on.
"""

from typing import Final

from base.units import PAGE_SHIFT, DomId, Sbdf
from hypervisor import profile
from hypervisor.frames import FrameTable
from hypervisor.iommu.context import PciDevice
from hypervisor.platform import Platform
from hypervisor.vtd.driver import VtdBackend
from hypervisor.xen import Xen
from machine.firmware import Drhd, Firmware
from machine.interrupts import X86_DOORBELL_BASE, X86_DOORBELL_SIZE, MessageInterrupts
from machine.iommu.vtd.config import Cap, Ecap, VtdConfig
from machine.iommu.vtd.reasons import (
    BEYOND_WIDTH,
    CONTEXT_NOT_PRESENT,
    FAULT_NAMES,
    NO_READ,
    NO_WRITE,
    ROOT_NOT_PRESENT,
)
from machine.iommu.vtd.unit import VtdUnit
from machine.mmio import SystemBus
from machine.pci import PciFunction, PciTopology
from oracle.device_rig import DeviceRig, Wanted
from oracle.dma_probe import Mailbox
from oracle.intent import Range
from oracle.lockstep import Lockstep
from oracle.qemu_pc import IOMMU_BASE, NOT_RAM, RAM_SIZE, Pc
from oracle.qemu_vtd import CAP, QemuVtdUnit
from oracle.software import Software
from oracle.vtd_deviations import DEVIATIONS, comparable_record, meaningless_bits

DATA_FIRST: Final = 0x4_0000
"""First frame (1 GiB) of those that programs map."""
DATA_LAST: Final = (RAM_SIZE >> PAGE_SHIFT) - 1
MAILBOX_DFN: Final = 0x3FF_FF00
"""Device frame of the mailbox in every context: near the end of what 3 levels reach, far from what programs map."""
MMIO: Final = range(RAM_SIZE, 1 << 32)
"""Machine addresses where a stray DMA could reach a device register."""

DOORBELL: Final = range(X86_DOORBELL_BASE, X86_DOORBELL_BASE + X86_DOORBELL_SIZE)

_ECAP: Final = 0x10
_FSTS: Final = 0x34
_IQH: Final = 0x80
_IQT: Final = 0x88
_RECORD_VALID: Final = 1 << 31
_CONTEXT_GLOBAL: Final = 0x11


def matching_config(cap: int, ecap: int, aw_bits: int) -> VtdConfig:
    """Our unit with the capabilities that a QEMU unit reports; it has no paging-structure cache."""
    widths = tuple(width for width, bit in ((39, 1), (48, 2)) if Cap.sagaw.get(cap) >> bit & 1)
    return VtdConfig(
        domain_id_bits=4 + 2 * Cap.nd.get(cap),
        address_widths=widths,
        max_guest_address_width=Cap.mgaw.get(cap) + 1,
        host_address_width=aw_bits,
        superpage_2m=bool(Cap.sllps_2m.get(cap)),
        superpage_1g=bool(Cap.sllps_1g.get(cap)),
        page_selective=bool(Cap.psi.get(cap)),
        max_address_mask=Cap.mamv.get(cap),
        caching_mode=bool(Cap.cm.get(cap)),
        drain_reads=bool(Cap.drd.get(cap)),
        drain_writes=bool(Cap.dwd.get(cap)),
        set_root_invalidates=bool(Cap.esrtps.get(cap)),
        fault_records=Cap.nfr.get(cap) + 1,
        fault_record_offset=Cap.fro.get(cap) * 16,
        iotlb_offset=Ecap.iro.get(ecap) * 16,
        coherent_walk=bool(Ecap.c.get(ecap)),
        snoops_anyway=True,
        queued_invalidation=bool(Ecap.qi.get(ecap)),
        pass_through=bool(Ecap.pt.get(ecap)),
        snoop_control=bool(Ecap.sc.get(ecap)),
        paging_structure_caches=False,
    )


def side_by_side(pc: Pc, bus: SystemBus, aw_bits: int) -> tuple[QemuVtdUnit, VtdUnit, Lockstep]:
    """The unit of a started machine, ours with the same capabilities, and both in lockstep.

    Our half sends its interrupts nowhere: software is interrupted once for each fault, after both halves saw it.
    """
    model = QemuVtdUnit("QEMU intel-iommu", bus, pc)
    config = matching_config(model.read(CAP, 8), model.read(_ECAP, 8), aw_bits)
    ours = VtdUnit("our VT-d", SystemBus(pc.ram.memory), config, None)
    record = config.fault_record_offset
    unit = Lockstep(
        ours,
        model,
        DEVIATIONS,
        FAULT_NAMES,
        lambda: ours.write(record + 12, 4, _RECORD_VALID),
        {_IQT: ((_IQH, 8), (_FSTS, 4))},
        meaningless_bits(record),
        comparable_record,
    )
    return model, ours, unit


class VtdRig(DeviceRig):
    """The machine, booted to the point where Xen has switched the unit on."""

    def __init__(
        self,
        aw_bits: int = 48,
        caching_mode: bool = False,
        snoop_control: bool = False,
        devices: int = 8,
        talk: bool = False,
    ) -> None:
        properties = [f"aw-bits={aw_bits}"]
        if caching_mode:
            properties.append("caching-mode=on")
        if snoop_control:
            properties.append("snoop-control=on")
        self.pc: Final = Pc(",".join(properties), devices, talk)
        try:
            self._assemble(aw_bits)
        except BaseException:
            self.pc.close()
            raise

    def _assemble(self, aw_bits: int) -> None:
        memory = self.pc.ram.memory
        bus = SystemBus(memory)
        interrupts = MessageInterrupts()
        bus.map(X86_DOORBELL_BASE, X86_DOORBELL_SIZE, interrupts)
        self.model, ours, unit = side_by_side(self.pc, bus, aw_bits)
        bus.map(IOMMU_BASE, unit.register_size, unit)
        topology = PciTopology()
        devices = [
            PciDevice(topology.add(PciFunction(Sbdf(requester))), (Sbdf(requester),)) for requester in self.pc.devices
        ]
        firmware = Firmware(drhds=(Drhd(IOMMU_BASE),))
        platform = Platform(memory, bus, topology, firmware, interrupts, X86_DOORBELL_BASE)
        xen = Xen(platform, profile.get("v7-fixed"), _with_data_frames)
        assert isinstance(xen.backend, VtdBackend)
        self.backend = xen.backend
        software = Software(xen, devices, Range(MAILBOX_DFN, DATA_LAST, 1, 3), self._moved)
        super().__init__(memory, ours, unit, software, (MMIO, NOT_RAM))
        self.steps |= {
            "flush-pages": self.flush_pages,
            "flush-domain": self.flush_domain,
            "flush-device": self.flush_device,
            "descriptor": self.descriptor,
        }

    def close(self) -> None:
        self.pc.close()

    def model_words(self) -> str:
        lines = self.pc.connection.process.said().splitlines()
        return "\n".join(line for line in lines if not line.startswith("vtd_reg_"))

    def _moved(self, device: PciDevice) -> None:
        """Give an attached device its mailbox, or take it from a detached one."""
        sid = device.sbdf & 0xFFFF
        if device.context is None:
            self.model.mailboxes.pop(sid, None)
            return
        offset = 8 * self.devices.index(device)
        self.model.mailboxes[sid] = Mailbox((MAILBOX_DFN << PAGE_SHIFT) + offset, (DATA_LAST << PAGE_SHIFT) + offset)

    def access(self, which: int, iova: int, write: bool) -> None:
        if iova not in DOORBELL:  # an interrupt message to QEMU's sleeping processor, not DMA
            super().access(which, iova, write)

    def wanted(self, device: PciDevice, iova: int, write: bool) -> Wanted:
        if device.context is None:
            return Wanted(None, (ROOT_NOT_PRESENT, CONTEXT_NOT_PRESENT))
        if iova > self.backend.max_iova:
            return Wanted(None, (BEYOND_WIDTH,))
        found = self.software.intents[device.context.number].find(iova >> PAGE_SHIFT)
        if found is None or not found[1] & (2 if write else 1):
            return Wanted(None, (NO_WRITE if write else NO_READ,))
        return Wanted(found[0] << PAGE_SHIFT | iova & 0xFFF)

    def empty_caches(self) -> None:
        self.descriptor(_CONTEXT_GLOBAL, 0)
        self.backend.units[0].flush_everything()

    # Steps: commands.

    def _did(self, which: int, wrong: int) -> int:
        """Domain id of a device's context, spoilt by ``wrong``."""
        context = self.devices[which].context if which < len(self.devices) else None
        return (context.hw.dids[0] if context is not None else 0) ^ wrong

    def flush_pages(self, which: int, iova: int, order: int, hint: int, wrong: int) -> None:
        """Page-selective IOTLB invalidation of 2^``order`` pages around ``iova``; ``wrong`` spoils the domain id."""
        address = iova >> PAGE_SHIFT >> order << order + PAGE_SHIFT
        self.descriptor(0xF2 | self._did(which, wrong) << 16, address | hint << 6 | order)

    def flush_domain(self, which: int, wrong: int) -> None:
        """Domain-selective IOTLB invalidation."""
        self.descriptor(0xE2 | self._did(which, wrong) << 16, 0)

    def flush_device(self, which: int, granularity: int, wrong: int) -> None:
        """Context-cache invalidation: 1 all, 2 domain, 3 device."""
        if which < len(self.devices):
            sid = self.devices[which].sbdf & 0xFFFF
            self.descriptor(1 | granularity << 4 | self._did(which, wrong) << 16 | sid << 32, 0)

    def descriptor(self, low: int, high: int) -> None:
        """Any invalidation descriptor, through software's queue."""
        self.backend.units[0].queue.submit(low, high)


def _with_data_frames(platform: Platform, frames: FrameTable) -> VtdBackend:
    """Set the data frames aside before the driver takes its first table."""
    frames.allocate_at(DomId(0), DATA_FIRST, DATA_LAST + 1 - DATA_FIRST)
    return VtdBackend(platform, frames)
