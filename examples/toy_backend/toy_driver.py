# SPDX-License-Identifier: GPL-2.0-or-later
"""The toy's software half, and the line that registers both."""

from typing import Any

from toy_hardware import ToyUnit

from abi.errno import ENOMEM
from hypervisor.frames import DOMID_XEN, FrameTable
from hypervisor.iommu.backend import FaultReport
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.pagetable.format import Format
from hypervisor.pagetable.radix import Changes, PageTable
from hypervisor.platform import Platform
from machine.firmware import Firmware
from testbed.backends import TranslationBackend

BASE = 0xFD10_0000
ENTRIES = Format(
    name="toy",
    leaf_bits=(0, 0, 4, 4),
    table_bits=1,
    kind_mask=4,
    leaf_kind=4,
    read=1,
    write=2,
    permission={1: 1, 2: 3, 3: 3},
    referenced=1 << 62,
    software=1 << 62,
)


class ToyBackend:
    """Satisfies :class:`hypervisor.iommu.backend.Backend`.  There are no tags and nothing to flush."""

    name = "toy"
    format = ENTRIES
    orders = (0, 9, 18)
    flushes_additions = False
    passes_through = False
    max_iova = (1 << 48) - 1

    def __init__(self, platform: Platform, frames: FrameTable) -> None:
        self._memory = platform.memory
        self._bus = platform.bus
        table = frames.allocate(DOMID_XEN, 7)  # 65,536 entries of 8 bytes
        if table is None:
            raise ValueError("no memory for the toy's device table")
        for frame in range(table, table + 128):
            platform.memory.zero_frame(frame)
        self._table = table

    def enable(self) -> int:
        self._bus.write64(BASE, self._table << 12)
        self._bus.write32(BASE + 8, 1)
        return 0

    def context_init(self, context: IommuContext) -> int:
        root = context.pool.allocate()
        if root is None:
            return -ENOMEM
        self._memory.zero_frame(root)
        context.table = PageTable(self._memory, self.format, 4, root, context.pool, self.orders)
        return 0

    def context_release(self, context: IommuContext) -> None:
        assert context.table is not None
        context.pool.free(context.table.root)
        context.table = None

    def attach(self, device: PciDevice, context: IommuContext) -> int:
        assert context.table is not None
        return self._write(device, context.table.root << 12 | 1)

    def detach(self, device: PciDevice) -> int:
        return self._write(device, 0)

    def cut_off(self, device: PciDevice) -> bool:
        return False

    def _write(self, device: PciDevice, entry: int) -> int:
        for rid in device.requester_ids:
            self._memory.write64((self._table << 12) + 8 * (rid & 0xFFFF), entry)
        return 0

    def flush(self, context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
        return 0

    def flush_all(self, context: IommuContext) -> int:
        return 0

    def take_faults(self) -> list[FaultReport]:
        status, address = self._bus.read32(BASE + 0x18), self._bus.read64(BASE + 0x10)
        if not status >> 31:
            return []
        self._bus.write32(BASE + 0x18, 1 << 31)
        write = bool(status >> 30 & 1)
        return [FaultReport(0, status & 0xFFFF, address, write, 1, "blocked", (address, status))]

    def save(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        return None


TOY = TranslationBackend(
    name="toy",
    title="Toy IOMMU",
    make_unit=lambda bus, options: ToyUnit(bus),
    unit_base=BASE,
    firmware=lambda base: Firmware(),
    make_driver=ToyBackend,
    default_guest="pvh",
    doorbell_window=(0xFEE0_0000, 0x10_0000),
    doorbell=0xFEE0_0000,
    doorbell_is_translated=True,
)
