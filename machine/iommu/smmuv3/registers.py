# SPDX-License-Identifier: GPL-2.0-or-later
"""The register file: where registers lie, which bits software may write, and when (IHI 0070, 6.2 and 6.3).

Two pages of 64 KiB.  The Event queue's indexes live in page 1; their page 0 offsets read as zero and ignore
writes, which is one of the two behaviours that 6.2 allows and the one that shows a driver's mistake.

A register that is *guarded* can be written only while its guard (an enable in CR0 or IRQ_CTRL) is off.  Updates
of CR0, IRQ_CTRL and GBPA take effect and are acknowledged at once.  Accesses are of 4 bytes, or of 8 to an
aligned pair of words (low word first); any other access reads zero and writes nothing.
"""

from typing import Final, NamedTuple

from base.bits import Layout, bit, bits
from machine.iommu.smmuv3.config import Smmuv3Config

REGISTER_SIZE: Final = 0x20000

CR0: Final = 0x20
CR0ACK: Final = 0x24
CR1: Final = 0x28
CR2: Final = 0x2C
GBPA: Final = 0x44
IRQ_CTRL: Final = 0x50
IRQ_CTRLACK: Final = 0x54
GERROR: Final = 0x60
GERRORN: Final = 0x64
GERROR_IRQ_CFG0: Final = 0x68
GERROR_IRQ_CFG1: Final = 0x70
STRTAB_BASE: Final = 0x80
STRTAB_BASE_CFG: Final = 0x88
CMDQ_BASE: Final = 0x90
CMDQ_PROD: Final = 0x98
CMDQ_CONS: Final = 0x9C
EVENTQ_BASE: Final = 0xA0
EVENTQ_IRQ_CFG0: Final = 0xB0
EVENTQ_IRQ_CFG1: Final = 0xB8
PRIQ_BASE: Final = 0xC0
PRIQ_IRQ_CFG0: Final = 0xD0
PRIQ_IRQ_CFG1: Final = 0xD8
PRIQ_IRQ_CFG2: Final = 0xDC
EVENTQ_PROD: Final = 0x100A8
EVENTQ_CONS: Final = 0x100AC
PRIQ_PROD: Final = 0x100C8
PRIQ_CONS: Final = 0x100CC

SMMUEN: Final = 1 << 0
PRIQEN: Final = 1 << 1
EVENTQEN: Final = 1 << 2
CMDQEN: Final = 1 << 3
ATSCHK: Final = 1 << 4

GERROR_IRQEN: Final = 1 << 0
PRIQ_IRQEN: Final = 1 << 1
EVENTQ_IRQEN: Final = 1 << 2

E2H: Final = 1 << 0
"""CR2: streams of the EL2 world use EL2-E2H."""
RECINVSID: Final = 1 << 1
"""CR2: record C_BAD_STREAMID."""

GBPA_UPDATE: Final = 1 << 31
GBPA_ABORT: Final = 1 << 20
GBPA_RESET: Final = 1 << 12
"""SHCFG: use the incoming shareability."""

OVERFLOW: Final = 1 << 31
"""EVENTQ_PROD.OVFLG and EVENTQ_CONS.OVACKFLG."""
INDEX_BITS: Final = (1 << 20) - 1


class Cr1(Layout, width=32):
    table_sh = bits(11, 10)
    table_oc = bits(9, 8)
    table_ic = bits(7, 6)
    queue_sh = bits(5, 4)
    queue_oc = bits(3, 2)
    queue_ic = bits(1, 0)


class Gbpa(Layout, width=32):
    update = bit(31)
    abort = bit(20)
    instcfg = bits(19, 18)
    privcfg = bits(17, 16)
    shcfg = bits(13, 12)
    alloccfg = bits(11, 8)
    mtcfg = bit(4)
    memattr = bits(3, 0)


class Gerror(Layout, width=32):
    sfm_err = bit(8)
    msi_gerror_abt_err = bit(7)
    msi_priq_abt_err = bit(6)
    msi_eventq_abt_err = bit(5)
    msi_cmdq_abt_err = bit(4)
    priq_abt_err = bit(3)
    eventq_abt_err = bit(2)
    cmdq_err = bit(0)


class StrtabBaseCfg(Layout, width=32):
    fmt = bits(17, 16, "0 linear, 1 two-level")
    split = bits(10, 6)
    log2size = bits(5, 0)


class Guard(NamedTuple):
    """Writable only while ``register & mask`` is zero."""

    register: int
    mask: int


FREE: Final = Guard(CR0, 0)
_BY_SMMUEN: Final = Guard(CR0, SMMUEN)
_BY_CMDQEN: Final = Guard(CR0, CMDQEN)
_BY_EVENTQEN: Final = Guard(CR0, EVENTQEN)
_BY_PRIQEN: Final = Guard(CR0, PRIQEN)
_BY_QUEUES: Final = Guard(CR0, CMDQEN | EVENTQEN | PRIQEN)
_BY_GERROR_IRQEN: Final = Guard(IRQ_CTRL, GERROR_IRQEN)
_BY_EVENTQ_IRQEN: Final = Guard(IRQ_CTRL, EVENTQ_IRQEN)
_BY_PRIQ_IRQEN: Final = Guard(IRQ_CTRL, PRIQ_IRQEN)


class Register(NamedTuple):
    """One row of the map.  ``writable`` is a mask of the bits that a write may change while ``guard`` is off."""

    name: str
    offset: int
    size: int
    writable: int = 0
    guard: Guard = FREE


def register_map(config: Smmuv3Config) -> tuple[Register, ...]:
    """Every register of the unit; CR1 has two rows because its halves have different guards.

    Address fields store no bits above the output address size (3.4.3).  GBPA has none that a plain write
    changes: it is written through its update handshake.
    """
    address = (1 << config.oas) - 1
    hint = 1 << 62
    message = address & ~0x3 if config.msi else 0
    data = 0xFFFF_FFFF if config.msi else 0
    attributes = 0x3F if config.msi else 0
    strtab_cfg = 0x307FF if config.two_level else 0x3F
    queue_half = Cr1.pack(queue_sh=3, queue_oc=3, queue_ic=3)
    table_half = Cr1.pack(table_sh=3, table_oc=3, table_ic=3)
    errors = Gerror.pack(
        sfm_err=1, msi_gerror_abt_err=1, msi_eventq_abt_err=1, msi_cmdq_abt_err=1, eventq_abt_err=1, cmdq_err=1
    )
    enables = SMMUEN | EVENTQEN | CMDQEN | (ATSCHK if config.ats else 0)
    interrupts = GERROR_IRQEN | EVENTQ_IRQEN
    pages: tuple[Register, ...] = ()
    if config.pri:
        enables |= PRIQEN
        interrupts |= PRIQ_IRQEN
        errors |= Gerror.pack(msi_priq_abt_err=1, priq_abt_err=1)
        pages = (
            Register("PRIQ_BASE", PRIQ_BASE, 8, hint | address, _BY_PRIQEN),
            Register("PRIQ_IRQ_CFG0", PRIQ_IRQ_CFG0, 8, message, _BY_PRIQ_IRQEN),
            Register("PRIQ_IRQ_CFG1", PRIQ_IRQ_CFG1, 4, data, _BY_PRIQ_IRQEN),
            Register("PRIQ_IRQ_CFG2", PRIQ_IRQ_CFG2, 4, attributes | 1 << 31, _BY_PRIQ_IRQEN),
            Register("PRIQ_PROD", PRIQ_PROD, 4, OVERFLOW | INDEX_BITS, _BY_PRIQEN),
            Register("PRIQ_CONS", PRIQ_CONS, 4, OVERFLOW | INDEX_BITS),
        )
    return (
        Register("IDR0", 0x00, 4),
        Register("IDR1", 0x04, 4),
        Register("IDR2", 0x08, 4),
        Register("IDR3", 0x0C, 4),
        Register("IDR4", 0x10, 4),
        Register("IDR5", 0x14, 4),
        Register("IIDR", 0x18, 4),
        Register("AIDR", 0x1C, 4),
        Register("CR0", CR0, 4, enables),
        Register("CR0ACK", CR0ACK, 4),
        Register("CR1", CR1, 4, queue_half, _BY_QUEUES),
        Register("CR1", CR1, 4, table_half, _BY_SMMUEN),
        Register("CR2", CR2, 4, RECINVSID | (E2H if config.hyp else 0), _BY_SMMUEN),
        Register("STATUSR", 0x40, 4),
        Register("GBPA", GBPA, 4),
        Register("AGBPA", 0x48, 4),
        Register("IRQ_CTRL", IRQ_CTRL, 4, interrupts),
        Register("IRQ_CTRLACK", IRQ_CTRLACK, 4),
        Register("GERROR", GERROR, 4),
        Register("GERRORN", GERRORN, 4, errors),
        Register("GERROR_IRQ_CFG0", GERROR_IRQ_CFG0, 8, message, _BY_GERROR_IRQEN),
        Register("GERROR_IRQ_CFG1", GERROR_IRQ_CFG1, 4, data, _BY_GERROR_IRQEN),
        Register("GERROR_IRQ_CFG2", 0x74, 4, attributes, _BY_GERROR_IRQEN),
        Register("STRTAB_BASE", STRTAB_BASE, 8, hint | address & ~0x3F, _BY_SMMUEN),
        Register("STRTAB_BASE_CFG", STRTAB_BASE_CFG, 4, strtab_cfg, _BY_SMMUEN),
        Register("CMDQ_BASE", CMDQ_BASE, 8, hint | address, _BY_CMDQEN),
        Register("CMDQ_PROD", CMDQ_PROD, 4, INDEX_BITS),
        Register("CMDQ_CONS", CMDQ_CONS, 4, INDEX_BITS, _BY_CMDQEN),
        Register("EVENTQ_BASE", EVENTQ_BASE, 8, hint | address, _BY_EVENTQEN),
        Register("EVENTQ_IRQ_CFG0", EVENTQ_IRQ_CFG0, 8, message, _BY_EVENTQ_IRQEN),
        Register("EVENTQ_IRQ_CFG1", EVENTQ_IRQ_CFG1, 4, data, _BY_EVENTQ_IRQEN),
        Register("EVENTQ_IRQ_CFG2", 0xBC, 4, attributes, _BY_EVENTQ_IRQEN),
        Register("EVENTQ_PROD", EVENTQ_PROD, 4, OVERFLOW | INDEX_BITS, _BY_EVENTQEN),
        Register("EVENTQ_CONS", EVENTQ_CONS, 4, OVERFLOW | INDEX_BITS),
        *pages,
    )


class RegisterFile:
    """The 32-bit words behind the map, by offset.  ``words`` is the state: copy it to save it."""

    def __init__(self, config: Smmuv3Config) -> None:
        self.words: Final[dict[int, int]] = {}
        self._rules: Final[dict[int, list[tuple[int, int, int]]]] = {}
        identity = config.id_registers()
        for row in register_map(config):
            for half in range(row.size // 4):
                offset = row.offset + 4 * half
                self.words[offset] = identity.get(row.name, 0)
                writable = row.writable >> 32 * half & 0xFFFF_FFFF
                if writable:
                    rule = (writable, row.guard.register, row.guard.mask)
                    self._rules.setdefault(offset, []).append(rule)
        self.words[GBPA] = GBPA_RESET | (GBPA_ABORT if config.abort_at_reset else 0)

    def read(self, offset: int, size: int) -> int:
        """What a read of ``size`` bytes sees."""
        words = self.words
        if size == 4:
            return words.get(offset, 0)
        if size == 8 and not offset & 7:
            return words.get(offset, 0) | words.get(offset + 4, 0) << 32
        return 0

    def write32(self, offset: int, value: int) -> None:
        """Change the bits of the word at ``offset`` that are writable now."""
        words = self.words
        for writable, guard, mask in self._rules.get(offset, ()):
            if not words[guard] & mask:
                words[offset] = words[offset] & ~writable | value & writable

    def read64(self, offset: int) -> int:
        """A 64-bit register."""
        return self.words[offset] | self.words[offset + 4] << 32
