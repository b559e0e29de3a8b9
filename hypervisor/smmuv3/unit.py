# SPDX-License-Identifier: GPL-2.0-or-later
"""One SMMU: what it can do, its structures in memory, and how it is switched on (IHI 0070, 6.3, 3.11, 3.12)."""

from collections.abc import Callable, Sequence
from typing import Final

from abi.errno import EIO, ENODEV, ENOMEM
from base.bits import Layout
from base.units import Sbdf
from hypervisor.frames import DOMID_XEN, FrameTable
from hypervisor.iommu.backend import FaultReport
from hypervisor.iommu.tags import Tags
from hypervisor.pagetable.radix import PageTable
from hypervisor.platform import Platform
from hypervisor.smmuv3 import layouts as hw
from hypervisor.smmuv3.events import EventQueue
from hypervisor.smmuv3.geometry import MAX_OAS, OAS_BITS, Geometry
from hypervisor.smmuv3.queue import CommandQueue
from hypervisor.smmuv3.streams import StreamTable
from machine.firmware import SmmuNode

FIRST_EVENT: Final = 0xE0
"""Message data of unit 0's event queue interrupt; the units count upwards from it."""
REPORTS: Final = 1024
"""Events kept for :meth:`SmmuUnit.take_faults`; later ones stay in the queue, and are lost when that is full."""
HANDSHAKE_POLLS: Final = 256
"""Reads of an acknowledge register before a unit counts as not answering."""
COMMAND_LOG2: Final = 8
EVENT_LOG2: Final = 7
"""Both queues fill one frame each, if the unit allows them to be that long."""
_WRITE_BACK_INNER: Final = hw.Cr1.pack(table_sh=3, table_oc=1, table_ic=1, queue_sh=3, queue_oc=1, queue_ic=1)
_NON_CACHEABLE: Final = hw.Cr1.pack(table_sh=2, queue_sh=2)


class SmmuUnit:
    """The SMMU that firmware describes as ``node``, number ``index`` of its driver."""

    def __init__(self, index: int, node: SmmuNode, platform: Platform, frames: FrameTable) -> None:
        bus = platform.bus
        self.index: Final = index
        self.node: Final = node
        self._memory: Final = platform.memory
        self._bus: Final = bus
        self._doorbell: Final = platform.doorbell
        self._frames: Final = frames
        self.idr0: Final = bus.read32(node.base + hw.IDR0)
        self.idr1: Final = bus.read32(node.base + hw.IDR1)
        idr3 = bus.read32(node.base + hw.IDR3)
        self._idr5: Final = bus.read32(node.base + hw.IDR5)
        self.id_registers: Final = (self.idr0, self.idr1, idr3, self._idr5)
        self.oas: Final = min(hw.Idr5.oas.get(self._idr5), MAX_OAS)
        """As STE.S2PS encodes it."""
        self.coherent: Final = bool(self.idr0 & hw.Idr0.cohacc.mask)
        self.ats: Final = bool(self.idr0 & hw.Idr0.ats.mask)
        self.ranges: Final = bool(idr3 & hw.Idr3.ril.mask)
        """TLBI commands may name a range of pages."""
        self.exchanges_freely: Final = hw.Idr3.bbml.get(idr3) >= 2
        """A block and a table may replace each other in one store."""
        self._vmids: Final = Tags(1 << (16 if self.idr0 & hw.Idr0.vmid16.mask else 8))
        self._vmids.take()  # 0 is left to streams that bypass stage 2, as in Xen and Linux
        self.global_errors = 0
        """Errors of GERROR that were read and acknowledged, those of the command queue aside."""
        sid_bits = min(hw.Idr1.sidsize.get(self.idr1), (0xFFFF + node.stream_offset).bit_length())
        self.streams: Final = StreamTable(platform.memory, frames, sid_bits, bool(hw.Idr0.st_level.get(self.idr0)))
        self.commands: CommandQueue
        self.events: EventQueue
        self._allocated = False
        self._reports: list[FaultReport] = []
        """Events that the interrupt handler took from the queue."""
        if self.idr0 & hw.Idr0.msi.mask:
            platform.interrupts.connect(FIRST_EVENT + index, self.on_event_interrupt)

    @property
    def address_bits(self) -> int:
        """Width of the addresses that the unit puts out."""
        return OAS_BITS[self.oas]

    def stream_of(self, requester: Sbdf) -> int:
        """The stream id under which DMA of a requester id arrives."""
        return (requester & 0xFFFF) + self.node.stream_offset

    # ------------------------------------------------------------------------------------------------ tags

    def take_vmid(self) -> int | None:
        """The lowest free VMID, ``None`` if all are in use."""
        return self._vmids.take()

    def free_vmid(self, vmid: int) -> None:
        self._vmids.give(vmid)

    # ------------------------------------------------------------------------------------------ switching on

    def enable(self) -> int:
        """Reset and switch on with every stream aborting.

        -ENODEV if the unit lacks what this driver needs, -ENOMEM, -EIO if it does not acknowledge a step.
        """
        error = self._check() or self._allocate()
        if error:
            return error
        checks = hw.Cr0.atschk.mask if self.ats else 0
        queues = hw.Cr0.eventqen.mask | hw.Cr0.cmdqen.mask
        steps: tuple[Callable[[], bool], ...] = (
            self._switch_off,
            self._program_memory_access,
            lambda: self._enable(hw.Cr0.cmdqen.mask),
            self._invalidate_everything,
            lambda: self._enable(queues | checks),
            self._enable_interrupts,
            lambda: self._enable(queues | checks | hw.Cr0.smmuen.mask),
        )
        for step in steps:
            if not step():
                return -EIO
        return 0

    def _check(self) -> int:
        """-ENODEV without stage 2 by little-endian AArch64 tables of 4 KiB granule, with preset structures, or with a
        command queue too short for a command and its CMD_SYNC."""
        has_tables = self.idr0 & hw.Idr0.s2p.mask and hw.Idr0.ttf.get(self.idr0) & 2
        little = hw.Idr0.ttendian.get(self.idr0) in (0, 2)
        preset = self.idr1 & (hw.Idr1.tables_preset.mask | hw.Idr1.queues_preset.mask)
        long_enough = hw.Idr1.cmdqs.get(self.idr1) > 0
        if has_tables and little and not preset and long_enough and self._idr5 & hw.Idr5.gran4k.mask:
            return 0
        return -ENODEV

    def _allocate(self) -> int:
        """Frames for the queues, the word that CMD_SYNC writes, and the stream table."""
        if self._allocated:
            return 0
        error = self.streams.allocate()
        if error:
            return error
        frames: list[int] = []
        for _ in range(3):
            frame = self._frames.allocate(DOMID_XEN)
            if frame is None:
                return -ENOMEM
            self._memory.zero_frame(frame)
            frames.append(frame)
        commands, events, message = frames
        base = self.node.base
        messages = self.coherent and bool(self.idr0 & hw.Idr0.msi.mask)
        self.commands = CommandQueue(
            self._memory,
            self._bus,
            base,
            commands,
            min(COMMAND_LOG2, hw.Idr1.cmdqs.get(self.idr1)),
            message << 9 if messages else None,
        )
        self.events = EventQueue(
            self._memory, self._bus, base, events, min(EVENT_LOG2, hw.Idr1.eventqs.get(self.idr1)), self.index
        )
        self._allocated = True
        return 0

    def _switch_off(self) -> bool:
        """Let DMA abort while the unit is off, then switch off whatever ran before."""
        gbpa = self.node.base + hw.GBPA
        if not self._settles(hw.GBPA, hw.Gbpa, "update"):
            return False
        self._bus.write32(gbpa, self._bus.read32(gbpa) | hw.Gbpa.abort.mask | hw.Gbpa.update.mask)
        return self._settles(hw.GBPA, hw.Gbpa, "update") and self._enable(0)

    def _program_memory_access(self) -> bool:
        """Where tables and queues are and how the unit is to read them."""
        bus, base = self._bus, self.node.base
        bus.write32(base + hw.CR1, _WRITE_BACK_INNER if self.coherent else _NON_CACHEABLE)
        bus.write32(base + hw.CR2, hw.Cr2.ptm.mask | hw.Cr2.recinvsid.mask)
        strtab_base, strtab_config = self.streams.registers()
        bus.write64(base + hw.STRTAB_BASE, strtab_base)
        bus.write32(base + hw.STRTAB_BASE_CFG, strtab_config)
        bus.write64(base + hw.CMDQ_BASE, self.commands.base_register)
        bus.write32(base + hw.CMDQ_PROD, 0)
        bus.write32(base + hw.CMDQ_CONS, 0)
        self.commands.forget()
        bus.write64(base + hw.EVENTQ_BASE, self.events.base_register)
        bus.write32(base + hw.EVENTQ_PROD, 0)
        bus.write32(base + hw.EVENTQ_CONS, 0)
        self.events.forget()
        bus.write32(base + hw.GERRORN, bus.read32(base + hw.GERROR))
        return True

    def _invalidate_everything(self) -> bool:
        commands = [hw.Command.pack(op=hw.CMD_CFGI_STE_RANGE), hw.RANGE_ALL]
        if self.idr0 & hw.Idr0.hyp.mask:
            commands += (hw.Tlbi.pack(op=hw.CMD_TLBI_EL2_ALL), 0)
        commands += (hw.Tlbi.pack(op=hw.CMD_TLBI_NSNH_ALL), 0)
        return self.commands.run(commands) == 0

    def _enable_interrupts(self) -> bool:
        """A message for events where the unit can send one (Xen: wired only), wires for the rest."""
        bus, base = self._bus, self.node.base
        bus.write32(base + hw.IRQ_CTRL, 0)
        if not self._reads(hw.IRQ_CTRLACK, 0):
            return False
        if self.idr0 & hw.Idr0.msi.mask:
            bus.write64(base + hw.GERROR_IRQ_CFG0, 0)
            bus.write64(base + hw.EVENTQ_IRQ_CFG0, self._doorbell)
            bus.write32(base + hw.EVENTQ_IRQ_CFG1, FIRST_EVENT + self.index)
            bus.write32(base + hw.EVENTQ_IRQ_CFG2, hw.DEVICE_NGNRE)
        wanted = hw.Irq.eventq.mask | hw.Irq.gerror.mask
        bus.write32(base + hw.IRQ_CTRL, wanted)
        return self._reads(hw.IRQ_CTRLACK, wanted)

    def _enable(self, cr0: int) -> bool:
        self._bus.write32(self.node.base + hw.CR0, cr0)
        return self._reads(hw.CR0ACK, cr0)

    def _reads(self, offset: int, value: int) -> bool:
        """Whether the register comes to hold ``value``."""
        return any(self._bus.read32(self.node.base + offset) == value for _ in range(HANDSHAKE_POLLS))

    def _settles(self, offset: int, layout: type[Layout], name: str) -> bool:
        """Whether a one-bit field comes to be 0."""
        mask = layout.fields[name].mask
        return any(not self._bus.read32(self.node.base + offset) & mask for _ in range(HANDSHAKE_POLLS))

    # ------------------------------------------------------------------------------------------------ errors

    def on_event_interrupt(self) -> None:
        """Move what is in the event queue to the driver's list."""
        if self._allocated and len(self._reports) < REPORTS:
            self._reports += self.events.take()

    def take_faults(self) -> list[FaultReport]:
        """The events since the last call; global errors are counted and acknowledged on the way."""
        bus, base = self._bus, self.node.base
        reports, self._reports = self._reports, []
        reports += self.events.take()
        acknowledged = bus.read32(base + hw.GERRORN)
        active = (bus.read32(base + hw.GERROR) ^ acknowledged) & ~hw.Gerror.cmdq.mask
        if active:
            self.global_errors += active.bit_count()
            bus.write32(base + hw.GERRORN, acknowledged ^ active)
        return reports

    # --------------------------------------------------------------------------------------------- snapshots

    def tree_words(self, geometry: Geometry, vmid: int, tree: PageTable | None) -> tuple[int, int]:
        """Words 2 and 3 of the entry of a stream that goes through ``tree`` (IHI 0070, 5.2); 0 if there is none."""
        if tree is None:
            return 0, 0
        cacheable = 1 if self.coherent else 0
        word = hw.Ste2.pack(
            s2r=1,
            s2ptw=1,
            s2aa64=1,
            s2ps=self.oas,
            s2sh0=3,
            s2or0=cacheable,
            s2ir0=cacheable,
            s2sl0=geometry.sl0,
            s2t0sz=geometry.t0sz,
            s2vmid=vmid,
        )
        return word, tree.root << 12

    def save(self) -> object:
        queues = (self.commands.save(), self.events.save()) if self._allocated else None
        return (self._vmids.save(), self.global_errors, self._reports[:], self.streams.save(), queues)

    def restore(self, state: object) -> None:
        vmids, self.global_errors, reports, streams, queues = state  # type: ignore[misc]
        self._vmids.restore(vmids)  # type: ignore[has-type]
        self._reports = reports[:]  # type: ignore[has-type]
        self.streams.restore(streams)  # type: ignore[has-type]
        if queues is not None:  # type: ignore[has-type]
            self.commands.restore(queues[0])  # type: ignore[has-type]
            self.events.restore(queues[1])  # type: ignore[has-type]


def covering(units: Sequence[SmmuUnit], requester: int) -> SmmuUnit | None:
    """The unit whose scope names the requester, else the one that takes the rest of its segment."""
    candidates = [unit for unit in units if unit.node.segment == requester >> 16]
    for unit in candidates:
        if requester in unit.node.scope:
            return unit
    return next((unit for unit in candidates if unit.node.include_all), None)
