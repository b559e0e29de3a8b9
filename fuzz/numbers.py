# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers at which code goes wrong: edges of fields, of tables, of regions; where programs put their mappings.

And cutting an operation to what its fields can hold.
"""

from typing import Final

from fuzz.target import GUEST_RAM
from fuzz.target import RMRR as REGION
from fuzz.verbs import Op
from testbed.build import MMIO_START

PAGES: Final = GUEST_RAM >> 12
CONTIGUOUS: Final = PAGES // 2
"""Guest pages that lie together in machine memory."""
FIRST_FRAME: Final = 512
"""The machine frame of the first of them."""
RMRR: Final = REGION.base >> 12
MMIO: Final = MMIO_START >> 12
BASES: Final = (0x400, 0x800, 0x3FE00, 0x40000, RMRR - 512, RMRR, 0x800_0000 - 512)
"""Where a program's mappings are: multiples of a superpage, at edges that matter."""
FAR: Final = (
    0,
    1,
    511,
    512,
    1 << 18,
    (1 << 27) - 1,
    (1 << 35) - 1,
    (1 << 36) - 1,
    1 << 36,
    (1 << 52) - 1,
    (1 << 64) - 1,
)
EDGES: Final = (0, (1 << 27) - 1, 1 << 27, (1 << 36) - 1, 1 << 36, (1 << 52) - 1, (1 << 64) - 1, RMRR - 1, RMRR + 3)
"""The last device frames that 39 bits, 48 bits, an address of 64 bits and a number of 64 bits reach, and the next; and
both ends of a reserved region."""
FLAGS: Final = (0, 1, 2, 4, 7, 8, 1 << 31, 0xFFFF_FFFF)
COUNTS: Final = (0, 1, 255, 256, 257, 511, 512, 513, 1024, 0xFFFF, 0xFFFF_FFFF)
SIZES: Final = (0, 1, 0x800, 0x2000, 0x3000, 0x20_0000, 0x4000_0000, 0x8000_0000, 0x20_1000)
DEVICES: Final = ("nic", "nic", "copier", "copier", "rogue", "port")
PATTERNS: Final = (0, 1, 2, 5, 9, 0b110, 0x8000)
_WIDE: Final = {"map": (3, 4), "unmap": (2, 3), "flush": (2, 3), "dma": (2, 3), "lookup": (2, 0)}
"""Positions of dfn and count (0: none)."""


def fitting(operation: Op) -> Op:
    """The operation with device frame, frame and count cut to the width of their fields."""
    places = _WIDE.get(operation[0])
    if places is not None:
        at, pages = places
        if operation[at] >> 64 or (pages and operation[pages] >> 32):
            row = list(operation)
            row[at] &= (1 << 64) - 1
            if pages:
                row[pages] &= (1 << 32) - 1
            operation = tuple(row)
        if operation[0] == "map" and operation[2][1] >> 64:
            space, number = operation[2]
            operation = (*operation[:2], (space, number & (1 << 64) - 1), *operation[3:])
    return operation
