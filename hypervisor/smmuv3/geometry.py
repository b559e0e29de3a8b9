# SPDX-License-Identifier: GPL-2.0-or-later
"""How wide and deep stage 2 trees are, and where their root tables come from.

With 4 KiB granule a walk starts at level 0 (four levels) only if the unit's output addresses have 44 bits or more
(Arm ARM D8.2); otherwise it starts at level 1, and up to 16 root tables lie side by side to cover what exceeds the
39 bits that three levels translate.  At full width that is Xen's table (xen/arch/arm/mmu/p2m.c); a narrower range on
a wide unit keeps the single root.

Concatenated roots have to be contiguous and aligned to their common size.  A domain's arena hands out single frames,
lowest first, and it has to be the arena that pays, or a guest could eat host memory by allocating contexts.  So a run
is taken out of it frame by frame until an aligned one is complete, and the others are given back.
"""

from dataclasses import dataclass
from typing import Final

from hypervisor.frames import DOMID_XEN, FrameTable
from hypervisor.iommu.pool import Arena
from hypervisor.pagetable.radix import FramePool

OAS_BITS: Final = (32, 36, 40, 42, 44, 48, 52)
"""IDR5.OAS and STE.S2PS to bits; 52 takes larger granules, so with 4 KiB it counts as 48."""
MAX_OAS: Final = 5


@dataclass(frozen=True, slots=True)
class Geometry:
    """A stage 2 input range of ``bits`` bits: tables of ``levels`` levels under ``root_frames`` roots."""

    bits: int
    levels: int
    root_frames: int

    @property
    def t0sz(self) -> int:
        return 64 - self.bits

    @property
    def sl0(self) -> int:
        """STE.S2SL0 for 4 KiB granule: 2 starts at level 0, 1 at level 1."""
        return self.levels - 2

    @property
    def max_iova(self) -> int:
        return (1 << self.bits) - 1


def geometry(bits: int, output_bits: int) -> Geometry:
    """The tree for ``bits`` bits of input address on units that put out ``output_bits`` or more.

    ``ValueError`` unless 32 <= ``bits`` <= 48 and ``bits`` <= ``output_bits``.
    """
    if not 32 <= bits <= min(48, output_bits):
        raise ValueError(f"a stage 2 input range has 32 to {min(48, output_bits)} bits here, not {bits}")
    if bits > 39 and output_bits >= 44:
        return Geometry(bits, 4, 1)
    return Geometry(bits, 3, 1 << max(0, bits - 39))


def allocate_root(geometry: Geometry, frames: FrameTable, pool: FramePool) -> int | None:
    """The first of ``geometry.root_frames`` contiguous frames out of ``pool``; ``None`` if it has no such run."""
    wanted = geometry.root_frames
    if wanted == 1:
        return pool.allocate()
    if not isinstance(pool, Arena):
        return frames.allocate(DOMID_XEN, wanted.bit_length() - 1)
    taken: set[int] = set()
    root: int | None = None
    while root is None:
        frame = pool.allocate()
        if frame is None:
            break
        taken.add(frame)
        first = frame & -wanted
        if all(first + k in taken for k in range(wanted)):
            root = first
            taken.difference_update(range(first, first + wanted))
    for frame in taken:
        pool.free(frame)
    return root
