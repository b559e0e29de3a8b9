# SPDX-License-Identifier: GPL-2.0-or-later
"""Our SMMUv3 driver on a machine whose SMMU is QEMU's and ours in lockstep, and the steps a program may take.

With a QEMU whose SMMU has stage 2, our own driver runs as it is, and :class:`NestedDriver` uses both stages.  With
stage 1 only, :class:`Stage1Driver` takes its place; our driver's unit would refuse to switch such an SMMU on, so it is
told that there is a stage 2.
"""

from collections.abc import Sequence
from typing import Final

from base.units import PAGE_SHIFT, DomId, Sbdf
from hypervisor import profile
from hypervisor.frames import FrameTable
from hypervisor.iommu.backend import Backend
from hypervisor.iommu.context import PciDevice
from hypervisor.platform import Platform
from hypervisor.smmuv3.driver import Smmuv3Backend
from hypervisor.smmuv3.unit import SmmuUnit
from hypervisor.xen import XEN_FRAMES, Xen
from machine.firmware import Firmware, SmmuNode
from machine.interrupts import ITS_DOORBELL_OFFSET, ITS_DOORBELL_PAGE, MessageInterrupts
from machine.iommu.smmuv3.config import OAS_BITS, Idr0, Idr1, Idr3, Idr5, Smmuv3Config
from machine.iommu.smmuv3.events import EVENT_NAMES
from machine.iommu.smmuv3.unit import Smmuv3Unit
from machine.iommu.unit import Walk, WalkStep
from machine.mmio import SystemBus
from machine.pci import PciFunction, PciTopology
from oracle.device_rig import DeviceRig, Wanted
from oracle.dma_probe import Mailbox
from oracle.intent import Range
from oracle.lockstep import Lockstep
from oracle.nested_driver import WINDOW, Layout, NestedDriver
from oracle.process import major_version
from oracle.qemu_smmu import EVENTQ_PROD, QemuSmmuUnit
from oracle.qemu_virt import RAM_SIZE, RAM_START, Virt, program
from oracle.smmu_deviations import DEVIATIONS, as_seen, comparable_record, leaf_output, meaningless_bits
from oracle.software import Software
from oracle.stage1_driver import TLBI_NH_ASID, TLBI_NH_VA, Stage1Driver

DATA_FIRST: Final = RAM_START >> PAGE_SHIFT
DATA_LAST: Final = DATA_FIRST + 0x3_FFFF
MAILBOX_DFN: Final = 0x3FF_FF00
UNIT_BASE: Final = 0xFD00_0000
"""Where software finds the registers: QEMU has them below RAM, where this machine's bus knows nothing but RAM."""
NOT_SHARED: Final = range(RAM_START)

ABORTED: Final = 0
C_BAD_STREAMID: Final = 0x02
F_TRANSLATION: Final = 0x10
F_ADDR_SIZE: Final = 0x11
F_PERMISSION: Final = 0x13
_IDR0: Final = 0x00
_IDR1: Final = 0x04
_IDR3: Final = 0x0C
_IDR5: Final = 0x14
_CMDQ_PROD: Final = 0x98
_CMDQ_CONS: Final = 0x9C
_GERROR: Final = 0x60
_GERRORN: Final = 0x64
_GBPA: Final = 0x44
_S2P: Final = 1
ENDS_ITSELF: Final = 9
"""First version of QEMU that takes some structures for a mistake of its own and ends itself."""
_CFGI_ALL: Final = (0x04, 31)
_TLBI_ALL: Final = (0x30, 0)


def matching_config(idr0: int, idr1: int, idr3: int, idr5: int) -> Smmuv3Config:
    """Our unit with the capabilities that a QEMU unit reports."""
    return Smmuv3Config(
        stage1=bool(Idr0.s1p.get(idr0)),
        stage2=bool(Idr0.s2p.get(idr0)),
        sid_bits=Idr1.sidsize.get(idr1),
        oas=OAS_BITS[Idr5.oas.get(idr5)],
        two_level=bool(Idr0.st_level.get(idr0)),
        vmid16=bool(Idr0.vmid16.get(idr0)),
        asid16=bool(Idr0.asid16.get(idr0)),
        cmdq_log2=Idr1.cmdqs.get(idr1),
        eventq_log2=Idr1.eventqs.get(idr1),
        msi=bool(Idr0.msi.get(idr0)),
        sev=bool(Idr0.sev.get(idr0)),
        coherent=bool(Idr0.cohacc.get(idr0)),
        ril=bool(Idr3.ril.get(idr3)),
        xnx=bool(Idr3.xnx.get(idr3)),
        had=bool(Idr3.had.get(idr3)),
        bbml=Idr3.bbml.get(idr3),
        caches_empty_l1std=False,
    )


def side_by_side(virt: Virt, stage: int, linear: bool = False) -> tuple[QemuSmmuUnit, Smmuv3Unit, Lockstep]:
    """The unit of a started machine, ours with the same capabilities, and both in lockstep.

    ``linear``: software is told that there are no two-level stream tables.
    """
    memory = virt.ram.memory
    version = major_version(program())

    def identify(offset: int, value: int) -> int:
        if offset == _IDR0:
            value |= _S2P
            if linear:
                value &= ~Idr0.st_level.mask
        return value

    model = QemuSmmuUnit("QEMU SMMUv3", virt, identify)
    registers = [model.read(offset, 4) for offset in (_IDR0, _IDR1, _IDR3, _IDR5)]
    registers[0] &= ~(_S2P if stage == 1 else 0)
    ours = Smmuv3Unit("our SMMUv3", SystemBus(memory), matching_config(*registers), None)
    words = ours.registers.words

    def discard() -> None:
        """Take back the event that our half has written last and software does not know of."""
        words[EVENTQ_PROD] = model.settled_prod

    unit = Lockstep(
        ours,
        model,
        [deviation for deviation in DEVIATIONS if version < deviation.fixed_in],
        EVENT_NAMES,
        discard,
        {_CMDQ_PROD: ((_CMDQ_CONS, 4), (_GERROR, 4), (_GERRORN, 4))},
        meaningless_bits(model.read(_GBPA, 4) != 0, lambda: bool((words[_GERROR] ^ words[_GERRORN]) & 1)),
        comparable_record,
        lambda walk: as_seen(memory, ours, version, walk),
        leaf_output,
    )
    return model, ours, unit


class SmmuRig(DeviceRig):
    """The machine, with the SMMU switched on.  ``stage``: 1, 2 or 3 (both); ``bits``: width of input addresses."""

    def __init__(
        self, stage: int = 1, bits: int = 48, linear: bool = False, devices: int = 8, talk: bool = False
    ) -> None:
        self.virt: Final = Virt(stage, devices, talk)
        try:
            self._assemble(stage, bits, linear)
        except BaseException:
            self.virt.close()
            raise

    def _assemble(self, stage: int, bits: int, linear: bool) -> None:
        memory = self.virt.ram.memory
        self._stage = stage
        self._window = WINDOW if stage == 3 else 0
        self._version = major_version(program())
        self.model, ours, unit = side_by_side(self.virt, stage, linear)
        bus = SystemBus(memory)
        bus.map(UNIT_BASE, unit.register_size, unit)
        interrupts = MessageInterrupts()
        bus.map(ITS_DOORBELL_PAGE, 0x1000, interrupts)
        topology = PciTopology()
        devices = [
            PciDevice(topology.add(PciFunction(Sbdf(requester))), (Sbdf(requester),)) for requester in self.virt.devices
        ]
        firmware = Firmware(smmus=(SmmuNode(UNIT_BASE),))
        platform = Platform(memory, bus, topology, firmware, interrupts, ITS_DOORBELL_PAGE + ITS_DOORBELL_OFFSET)

        def make_driver(platform: Platform, frames: FrameTable) -> Backend:
            frames.allocate_at(DomId(0), XEN_FRAMES, DATA_LAST + 1 - XEN_FRAMES)
            if stage == 3:
                tables = range(DATA_LAST + 1, RAM_START + RAM_SIZE >> PAGE_SHIFT)
                return NestedDriver(platform, frames, bits, Layout(range(DATA_FIRST, DATA_LAST + 1), tables))
            if stage == 1:
                return Stage1Driver(platform, frames, bits)
            return Smmuv3Backend(platform, frames, input_bits=bits)

        xen = Xen(platform, profile.get("v7-fixed"), make_driver)
        self.backend = xen.backend
        self.model.on_event = lambda: _nothing(xen.backend.take_faults())
        mailbox = Range(MAILBOX_DFN, DATA_LAST + (self._window >> PAGE_SHIFT), 1, 3)
        software = Software(xen, devices, mailbox, self._moved)
        super().__init__(memory, ours, unit, software, (NOT_SHARED,))
        self.steps |= {
            "flush-page": self.flush_page,
            "flush-all": self.flush_all,
            "flush-stream": self.flush_stream,
            "command": self.command,
        }

    def close(self) -> None:
        self.virt.close()

    def model_words(self) -> str:
        lines = self.virt.connection.process.said().splitlines()
        return "\n".join(line for line in lines if not line.startswith("smmuv3_read_mmio"))

    @property
    def _driver_unit(self) -> SmmuUnit:
        backend = self.backend
        if isinstance(backend, Stage1Driver):
            return backend.unit
        assert isinstance(backend, Smmuv3Backend)
        return backend.units[0]

    def _moved(self, device: PciDevice) -> None:
        """Give an attached device its mailbox, or take it from a detached one."""
        sid = device.sbdf & 0xFFFF
        if device.context is None:
            self.model.mailboxes.pop(sid, None)
            return
        offset = 8 * self.devices.index(device)
        self.model.mailboxes[sid] = Mailbox((MAILBOX_DFN << PAGE_SHIFT) + offset, (DATA_LAST << PAGE_SHIFT) + offset)

    def wanted(self, device: PciDevice, iova: int, write: bool) -> Wanted:
        if device.context is None:
            return Wanted(None, (ABORTED, C_BAD_STREAMID))
        if iova > self.backend.max_iova:
            return Wanted(None, (F_TRANSLATION, F_ADDR_SIZE))
        found = self.software.intents[device.context.number].find(iova >> PAGE_SHIFT)
        if found is None:
            return Wanted(None, (F_TRANSLATION,))
        if not found[1] & (2 if write else 1):
            return Wanted(None, (F_PERMISSION,))
        return Wanted((found[0] << PAGE_SHIFT | iova & 0xFFF) - self._window)

    def access(self, which: int, iova: int, write: bool) -> None:
        if which < len(self.devices) and self._version >= ENDS_ITSELF:
            steps = self.ours.walk(self.sid(which), iova, write).steps
            if any(_ends_qemu(step, self._stage) for step in steps):
                self.skipped += 1
                return
        super().access(which, iova, write)

    def walks(self, walk: Walk) -> list[Walk]:
        blind = as_seen(self.memory, self.ours, self._version, walk)
        return [walk] if blind is None else [walk, blind.walk]

    def goals(self, walks: Sequence[Walk]) -> list[int]:
        leaf = leaf_output(walks[0])
        return super().goals(walks) if leaf is None else [*super().goals(walks), leaf]

    def empty_caches(self) -> None:
        self._driver_unit.commands.run([*_CFGI_ALL, *_TLBI_ALL])

    # Steps: commands.

    def _tag(self, which: int, wrong: int) -> int:
        """ASID or VMID of a device's context in its place in a command, spoilt by ``wrong``."""
        context = self.devices[which].context if which < len(self.devices) else None
        if context is None:
            return 0
        if isinstance(self.backend, Stage1Driver):
            return self.backend.tag(context.hw.asid ^ wrong)
        return int(context.hw.vmids[0] ^ wrong) << 32

    def flush_page(self, which: int, iova: int, leaf: int, wrong: int) -> None:
        """Invalidate one page of a device's context; ``wrong`` spoils the tag."""
        op = 0x2A if self._stage == 2 else TLBI_NH_VA
        self.command(op | self._tag(which, wrong), iova & ~0xFFF | leaf)

    def flush_all(self, which: int, wrong: int) -> None:
        """Invalidate a device's context."""
        self.command((0x28 if self._stage == 2 else TLBI_NH_ASID) | self._tag(which, wrong), 0)

    def flush_stream(self, which: int, leaf: int, wrong: int) -> None:
        """Invalidate a device's stream table entry."""
        if which < len(self.devices):
            self.command(0x03 | (self.sid(which) ^ wrong) << 32, leaf)

    def command(self, low: int, high: int) -> None:
        """Any command, through software's queue."""
        self._driver_unit.commands.run([low, high])


def _ends_qemu(step: WalkStep, stage: int) -> bool:
    """Whether QEMU 10.0 ends itself over a structure ("code should not be reached"): an STE that asks for stage 2 of an
    SMMU that has stage 1 alone, or for AArch32 tables; a CD whose IPS says 52 bits or the reserved 7."""
    words = step.words
    if step.name == "STE":
        return words[0] & 0b1101 == 0b1101 and (stage == 1 or not words[2] >> 51 & 1)
    return step.name == "CD" and words[0] >> 32 & 7 > 5


def _nothing(reports: object) -> None:
    """Fault reports that were taken so that their slots are free again."""
