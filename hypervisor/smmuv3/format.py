# SPDX-License-Identifier: GPL-2.0-or-later
"""Stage 2 descriptors of VMSAv8-64 with 4 KiB granule, little-endian (Arm ARM D8.3, IHI 0070 3.4).

Leaves are what Xen's p2m writes for a device mapping: Normal write-back, inner shareable, access flag set, never
executable.  The p2m type that Xen keeps in the software bits is not needed here; one of them marks a leaf that
holds a reference on its frames.
"""

from typing import Final

from base.bits import Layout, bit, bits
from hypervisor.pagetable.format import Format


class Stage2Descriptor(Layout):
    """A page or block descriptor; bit 1 tells a page or table (1) from a block (0)."""

    software = bits(58, 55)
    xn = bit(54)
    address = bits(47, 12)
    af = bit(10)
    sh = bits(9, 8)
    s2ap_write = bit(7)
    s2ap_read = bit(6)
    memattr = bits(5, 2)
    not_block = bit(1)
    valid = bit(0)


_LEAF: Final = Stage2Descriptor.pack(xn=1, af=1, sh=3, memattr=0xF, valid=1)
_PAGE: Final = _LEAF | Stage2Descriptor.not_block.mask
_READ: Final = Stage2Descriptor.s2ap_read.mask
_WRITE: Final = Stage2Descriptor.s2ap_write.mask

STAGE2: Final = Format(
    name="vmsav8-64 stage 2",
    leaf_bits=(0, _PAGE, _LEAF, _LEAF),
    table_bits=Stage2Descriptor.pack(not_block=1, valid=1),
    kind_mask=Stage2Descriptor.not_block.mask,
    leaf_kind=0,
    read=_READ,
    write=_WRITE,
    permission={1: _READ, 2: _WRITE, 3: _READ | _WRITE},
    referenced=1 << 55,
    software=Stage2Descriptor.software.mask,
)
