# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers and descriptors of the test NIC, from its datasheet, as its driver sees them."""

import struct
from typing import Final

NIC_ID: Final = 0x4E494331
ID: Final = 0x00
CTRL: Final = 0x04
STATUS: Final = 0x08
MAC_LO: Final = 0x0C
MAC_HI: Final = 0x10
IRQ_MASK: Final = 0x14
IRQ_STATUS: Final = 0x18
MSI_ADDR_LO: Final = 0x1C
MSI_ADDR_HI: Final = 0x20
MSI_DATA: Final = 0x24
TX_RING: Final = 0x40
RX_RING: Final = 0x60
# Registers of a ring, from its first one.
BASE_LO: Final = 0x0
BASE_HI: Final = 0x4
LOG2SIZE: Final = 0x8
TAIL: Final = 0xC
HEAD: Final = 0x10

CTRL_ENABLE: Final = 1 << 0
CTRL_RESET: Final = 1 << 1
STATUS_LINK: Final = 1 << 0
STATUS_DMA_ERROR: Final = 1 << 1
IRQ_RX: Final = 1 << 0
IRQ_TX: Final = 1 << 1

DESCRIPTOR: Final = struct.Struct("<QHHHH")
"""addr, length, flags, written, reserved."""
EOP: Final = 1 << 0
ERROR: Final = 1 << 14
DONE: Final = 1 << 15
