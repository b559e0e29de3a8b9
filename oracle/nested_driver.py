# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage 1 driver above a stage 2 that translates its tables, its context descriptors and its pages (IHI 0070, 3.4).

What it takes for machine addresses are intermediate ones.  Stage 2 never changes: frames for tables lead to
themselves, pages are seen through a window far away from where they lie, so that a translation that forgets either
stage goes astray.
"""

from typing import Final, NamedTuple

from hypervisor.frames import DOMID_XEN, FrameTable
from hypervisor.iommu.context import IommuContext
from hypervisor.iommu.pool import HeapPool
from hypervisor.pagetable.radix import Changes, PageTable
from hypervisor.platform import Platform
from hypervisor.smmuv3.format import STAGE2
from oracle.stage1_driver import Stage1Driver

WINDOW: Final = 0x10_0000_0000
"""How far a page's intermediate address lies above its machine address."""
VMID: Final = 7
OAS_BITS: Final = (32, 36, 40, 42, 44, 48, 48)

_READ_WRITE: Final = 3
_CONFIG_NESTED: Final = 0b1111
_WALK_ATTRIBUTES: Final = 1 << 8 | 1 << 10 | 3 << 12
_AA64: Final = 1 << 51
_PROTECTS_WALKS: Final = 1 << 54
_RECORDS: Final = 1 << 58


class Layout(NamedTuple):
    """Which frames stage 2 lets through: ``pages`` through the window, ``tables`` to themselves."""

    pages: range
    tables: range


class NestedDriver(Stage1Driver):
    """Drives stage 1 of the first SMMU; ``ValueError`` if there is no memory for stage 2."""

    name: str = "smmuv3-nested"
    vmid: int = VMID
    mair: int = 0x0C08_0400_4FBB_44FF
    """Write-back, non-cacheable, write-through, a mixture, and the four kinds of Device memory."""

    def __init__(self, platform: Platform, frames: FrameTable, bits: int, layout: Layout) -> None:
        super().__init__(platform, frames, bits)
        pool = HeapPool(frames)
        root = frames.allocate(DOMID_XEN)
        if root is None:
            raise ValueError("no memory for stage 2")
        platform.memory.zero_frame(root)
        self.stage2: Final = PageTable(platform.memory, STAGE2, 4, root, pool, (0, 9))
        for run, offset in ((layout.pages, WINDOW >> 12), (layout.tables, 0)):
            done, error = self.stage2.map(
                run.start + offset, run.start, len(run), STAGE2.permission[_READ_WRITE], Changes()
            )
            if error or done != len(run):
                raise ValueError("no memory for stage 2")

    def ste(self, context: IommuContext) -> tuple[int, ...]:
        low, attributes, *_ = super().ste(context)
        size = self.unit.oas
        bits = OAS_BITS[size]
        vtcr = 64 - bits | 2 << 6 | _WALK_ATTRIBUTES | size << 16
        controls = VMID | vtcr << 32 | _AA64 | _PROTECTS_WALKS | _RECORDS
        return (low | _CONFIG_NESTED, attributes, controls, self.stage2.root << 12)
