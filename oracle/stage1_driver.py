# SPDX-License-Identifier: GPL-2.0-or-later
"""A small driver that translates with stage 1, for SMMUs that have nothing else (IHI 0070, 5.2, 5.4; Arm ARM D8.3).

Xen uses stage 2 and so does our driver.  Some models have stage 1 only; with this driver they can judge our
hardware half all the same, and with it the parts of our own driver that are used here as they are: switching the unit
on, queues, stream tables and the page-table algorithm.  Its entries are written with plain shifts, as a second
reading of the manual.

A context is an ASID, a context descriptor and a tree of 48 or 39 bits.
"""

from typing import Final, NamedTuple

from abi.errno import EIO, ENODEV, ENOMEM
from hypervisor.frames import FrameTable
from hypervisor.iommu.backend import FaultReport
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.pagetable.format import Format
from hypervisor.pagetable.radix import Changes, PageTable
from hypervisor.platform import Platform
from hypervisor.smmuv3.unit import SmmuUnit

_VALID: Final = 1
_PAGE: Final = 1 << 1
_UNPRIVILEGED: Final = 1 << 6
_READ_ONLY: Final = 1 << 7
_INNER_SHAREABLE: Final = 3 << 8
_ACCESSED: Final = 1 << 10
_NOT_GLOBAL: Final = 1 << 11
_NEVER_EXECUTE: Final = 3 << 53
_LEAF: Final = _VALID | _UNPRIVILEGED | _INNER_SHAREABLE | _ACCESSED | _NOT_GLOBAL | _NEVER_EXECUTE

STAGE1: Final = Format(
    name="vmsav8-64 stage 1",
    leaf_bits=(0, _LEAF | _PAGE, _LEAF, _LEAF),
    table_bits=_VALID | _PAGE,
    kind_mask=_PAGE,
    leaf_kind=0,
    read=_VALID,
    write=0,
    permission={1: _READ_ONLY, 2: 0, 3: 0},
    referenced=1 << 55,
    software=0xF << 55,
)
"""There is no write-only page at stage 1: what is to be written can be read."""

_STE_STAGE_1: Final = 0b1011
"""Valid, Config = stage 1."""
_STE_ATTRIBUTES: Final = 1 << 2 | 1 << 4 | 3 << 6 | 3 << 48 | 1 << 44
"""Context descriptors are write-back and inner shareable, requests count as privileged (the models know no others)."""
_STE_ABORT: Final = 0b0001

CFGI_STE: Final = 0x03
CFGI_CD_ALL: Final = 0x06
TLBI_NH_ASID: Final = 0x11
TLBI_NH_VA: Final = 0x12
_MOST_PAGES: Final = 16
"""Longest flush that names its pages."""
_STRTAB_BASE: Final = 0x80
_STRTAB_BASE_CFG: Final = 0x88


class Stage1Context(NamedTuple):
    """What the driver keeps in ``IommuContext.hw``."""

    asid: int
    descriptor: int
    """Machine address of the context descriptor."""


class Stage1Driver:
    """A :class:`hypervisor.iommu.backend.Backend` for the first SMMU of the platform."""

    name: str = "smmuv3-stage1"
    format: Format = STAGE1
    orders: tuple[int, ...] = (0, 9, 18)
    flushes_additions: bool = False
    passes_through: bool = False
    mair: int = 0xFF
    """Memory attributes to choose from; leaves take number 0, Normal write-back."""
    vmid: int = 0
    """What translations are tagged with beside their ASID."""

    def __init__(self, platform: Platform, frames: FrameTable, bits: int = 48) -> None:
        node = platform.firmware.smmus[0]
        self.unit: Final = SmmuUnit(0, node, platform, frames)
        self.max_iova: int = (1 << bits) - 1
        self._bits: Final = bits
        self._memory: Final = platform.memory
        self._bus: Final = platform.bus
        self._base: Final = node.base
        self._next_asid = 1

    def enable(self) -> int:
        return self.unit.enable()

    def context_init(self, context: IommuContext) -> int:
        root, frame = context.pool.allocate(), context.pool.allocate()
        if root is None or frame is None:
            return -ENOMEM
        self._memory.zero_frame(root)
        self._memory.zero_frame(frame)
        levels = 4 if self._bits > 39 else 3
        context.table = PageTable(self._memory, STAGE1, levels, root, context.pool, self.orders)
        asid = self._next_asid
        self._next_asid = asid % 0xFFFF + 1
        t0sz, write_back, shareable = 64 - self._bits, 1 << 8 | 1 << 10, 3 << 12
        unused_upper_half, valid, aa64, record, abort, own_asids = 1 << 30, 1 << 31, 1 << 41, 1 << 45, 1 << 46, 1 << 47
        output_size = self.unit.oas << 32
        words = (
            t0sz
            | write_back
            | shareable
            | unused_upper_half
            | valid
            | output_size
            | aa64
            | record
            | abort
            | own_asids
            | asid << 48,
            root << 12,
            0,
            self.mair,
        )
        for k, word in enumerate(words):
            self._memory.write64((frame << 12) + 8 * k, word)
        context.hw = Stage1Context(asid, frame << 12)
        return 0

    def context_release(self, context: IommuContext) -> None:
        assert context.table is not None
        context.pool.free(context.table.root)
        context.pool.free(context.hw.descriptor >> 12)
        context.table = None
        context.hw = None

    def attach(self, device: PciDevice, context: IommuContext) -> int:
        sid = device.sbdf & 0xFFFF
        if self.unit.streams.prepare(sid, self.unit.commands):
            return -ENODEV
        error = self.detach(device)
        if error:
            return error
        ste = self.entry(sid)
        for k, word in reversed(list(enumerate(self.ste(context)))):  # what makes it valid comes last
            self._memory.write64(ste + 8 * k, word)
        if self.unit.commands.run([CFGI_STE | sid << 32, 1, CFGI_CD_ALL | sid << 32, 0]):
            self._memory.write64(ste, _STE_ABORT)
            return -EIO
        device.hw = context.hw
        return 0

    def ste(self, context: IommuContext) -> tuple[int, ...]:
        """The words of a stream table entry that are not zero."""
        return (_STE_STAGE_1 | context.hw.descriptor, _STE_ATTRIBUTES)

    def detach(self, device: PciDevice) -> int:
        """Abort the stream, and forget what was translated under its ASID."""
        sid = device.sbdf & 0xFFFF
        error = self.unit.streams.block(sid, self.unit.commands)
        if device.hw is not None:
            error = self.unit.commands.run([CFGI_CD_ALL | sid << 32, 0, *self._everything(device.hw.asid)]) or error
            device.hw = None
        return error

    def cut_off(self, device: PciDevice) -> bool:
        return device.hw is None  # a failed attach leaves the stream aborting

    def entry(self, sid: int) -> int:
        """Machine address of a stream table entry, read from the unit's registers and the table."""
        base = self._bus.read64(self._base + _STRTAB_BASE) & 0xF_FFFF_FFFF_FFC0
        config = self._bus.read32(self._base + _STRTAB_BASE_CFG)
        if not config >> 16 & 3:
            return base + 64 * sid
        split = config >> 6 & 31
        second = self._memory.read64(base + 8 * (sid >> split)) & 0xF_FFFF_FFFF_FFC0
        return second + 64 * (sid & (1 << split) - 1)

    def flush(self, context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
        if not changes.modified:
            return 0
        if pages > _MOST_PAGES:
            return self.flush_all(context)
        tag = TLBI_NH_VA | self.tag(context.hw.asid)
        leaf = int(not changes.tables)
        commands = [word for page in range(dfn, dfn + pages) for word in (tag, page << 12 | leaf)]
        return self.unit.commands.run(commands)

    def flush_all(self, context: IommuContext) -> int:
        return self.unit.commands.run(self._everything(context.hw.asid))

    def tag(self, asid: int) -> int:
        """What tells a context's translations from others, in its place in a command."""
        return asid << 48 | self.vmid << 32

    def _everything(self, asid: int) -> list[int]:
        return [TLBI_NH_ASID | self.tag(asid), 0]

    def take_faults(self) -> list[FaultReport]:
        return self.unit.take_faults()

    def save(self) -> object:
        return (self._next_asid, self.unit.save())

    def restore(self, state: object) -> None:
        self._next_asid, unit = state  # type: ignore[misc]
        self.unit.restore(unit)  # type: ignore[has-type]
