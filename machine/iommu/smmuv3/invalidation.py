# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that make caches forget: configuration (IHI 0070, 4.3) and translations (4.4).

Each removes what the manual says it must remove and no more.
"""

from collections.abc import Callable, Iterator
from typing import Final, cast

from base.bits import Layout, bit, bits
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.registers import CR2, E2H, RegisterFile
from machine.iommu.smmuv3.ste import EL2, EL2_E2H
from machine.iommu.smmuv3.streams import StreamTable
from machine.iommu.smmuv3.tlb import GLOBAL, Stage1Tag
from machine.iommu.smmuv3.translation import Caches

CERROR_ILL: Final = 1
_OK: Final = 0
_SSEC: Final = 1 << 10
_IPA: Final = 0x000F_FFFF_FFFF_F000
_VA_PAGES: Final = (1 << 44) - 1
"""Translations are found by address bits 55:12."""
_LEAF: Final = 1
_TG_4K: Final = 1
_TG_16K: Final = 2

Handler = Callable[[int, int], int]
"""Executes one command given its two words; 0 or the CERROR code."""

HandlerTable = dict[int, tuple[str, "Handler | None"]]
"""By opcode: the command's name in the manual, and what executes it."""


class Command0(Layout):
    """First word of a TLB or configuration invalidation; fields differ by command and may share bits."""

    stream_id = bits(63, 32)
    scale = bits(24, 20)
    num = bits(16, 12)
    ssec = bit(10)
    opcode = bits(7, 0)


class InvalidateAddress(Layout):
    """Second word of an invalidation by address (4.4.1.1)."""

    address = bits(63, 12)
    tg = bits(11, 10)
    ttl = bits(9, 8)
    leaf = bit(0)


class Invalidations:
    """Executes CMD_CFGI and CMD_TLBI commands on the caches of one unit."""

    def __init__(self, config: Smmuv3Config, registers: RegisterFile, streams: StreamTable, caches: Caches) -> None:
        self._config: Final = config
        self._registers: Final = registers
        self._streams: Final = streams
        self._contexts: Final = caches.contexts
        self._tlb: Final = caches.tlb2
        self._tables: Final = caches.tables2
        self._tlb1: Final = caches.tlb1
        self._tables1: Final = caches.tables1

    def commands(self) -> HandlerTable:
        """The commands that the ID registers offer."""
        offered: HandlerTable = {
            0x03: ("CMD_CFGI_STE", self._cfgi_ste),
            0x04: ("CMD_CFGI_STE_RANGE", self._cfgi_ste_range),
            0x30: ("CMD_TLBI_NSNH_ALL", self._tlbi_nsnh_all),
        }
        if self._config.stage2:
            all_stages = self._tlbi_both_vmall if self._config.stage1 else self._tlbi_s12_vmall
            offered[0x28] = ("CMD_TLBI_S12_VMALL", all_stages)
            offered[0x2A] = ("CMD_TLBI_S2_IPA", self._tlbi_s2_ipa)
        if self._config.stage1:
            offered |= {
                0x05: ("CMD_CFGI_CD", self._cfgi_cd),
                0x06: ("CMD_CFGI_CD_ALL", self._cfgi_cd_all),
                0x10: ("CMD_TLBI_NH_ALL", self._tlbi_nh_all),
                0x11: ("CMD_TLBI_NH_ASID", self._tlbi_nh_asid),
                0x12: ("CMD_TLBI_NH_VA", self._tlbi_nh_va),
                0x13: ("CMD_TLBI_NH_VAA", self._tlbi_nh_vaa),
            }
        if self._config.hyp:
            offered |= {
                0x20: ("CMD_TLBI_EL2_ALL", self._tlbi_el2_all),
                0x21: ("CMD_TLBI_EL2_ASID", self._tlbi_el2_asid),
                0x22: ("CMD_TLBI_EL2_VA", self._tlbi_el2_va),
                0x23: ("CMD_TLBI_EL2_VAA", self._tlbi_el2_vaa),
            }
        return offered

    # -- configuration --------------------------------------------------------------------------------------

    def _cfgi_ste(self, low: int, high: int) -> int:
        """4.3.1: the STE, and the CDs that were found through it."""
        if low & _SSEC:
            return CERROR_ILL
        self._streams.invalidate(low >> 32, bool(high & _LEAF))
        if self._config.stage1:
            self._contexts.invalidate_streams(low >> 32)
        return _OK

    def _cfgi_ste_range(self, low: int, high: int) -> int:
        """4.3.2; a range of 31 is CMD_CFGI_ALL (4.3.6)."""
        if low & _SSEC:
            return CERROR_ILL
        log2count = (high & 0x1F) + 1
        self._streams.invalidate_range(low >> 32, log2count)
        if self._config.stage1:
            self._contexts.invalidate_streams(low >> 32, log2count)
        return _OK

    def _cfgi_cd(self, low: int, high: int) -> int:
        """4.3.3: the SubstreamID is an index of the table; one that no CD can have matches nothing."""
        if low & _SSEC:
            return CERROR_ILL
        self._contexts.invalidate(low >> 32, low >> 12 & 0xF_FFFF, bool(high & _LEAF))
        return _OK

    def _cfgi_cd_all(self, low: int, high: int) -> int:
        if low & _SSEC:
            return CERROR_ILL
        self._contexts.invalidate_streams(low >> 32)
        return _OK

    # -- stage 2 and everything -----------------------------------------------------------------------------

    def _tlbi_s12_vmall(self, low: int, high: int) -> int:
        vmid = low >> 32 & 0xFFFF
        self._tlb.invalidate_tag(vmid)
        self._tables.invalidate_tag(vmid)
        return _OK

    def _tlbi_both_vmall(self, low: int, high: int) -> int:
        self._tlbi_s12_vmall(low, high)
        return self._tlbi_nh_all(low, high)

    def _tlbi_s2_ipa(self, low: int, high: int) -> int:
        """4.4.3.1 with the range and level hint of 4.4.1.1, where RIL is implemented; Leaf spares the tables.

        Entries come from 4 KiB granule tables, so a command for another granule finds none.  Where the manual
        calls the range of a hinted command UNPREDICTABLE (an address not aligned to the level), nothing goes.
        What stages 1 and 2 gave together stays too: the manual asks for a stage 1 command beside this one.
        """
        vmid = low >> 32 & 0xFFFF
        page = (high & _IPA) >> 12
        granule = high >> 10 & 3 if self._config.ril else 0
        if not granule:
            self._tlb.invalidate_pages(vmid, page, 1)
            if not high & _LEAF:
                self._tables.invalidate_pages(vmid, page, 1)
            return _OK
        scope = self._range(low, high, page)
        if scope is None:
            return CERROR_ILL
        count, ttl = scope
        if count:
            self._tlb.invalidate_level(vmid, page, count, ttl)
            if not high & _LEAF:
                self._tables.invalidate_pages(vmid, page, count, ttl)
        return _OK

    def _tlbi_nsnh_all(self, low: int, high: int) -> int:
        """4.4.4.1: all but the EL2 worlds."""
        self._tlb.invalidate_all()
        self._tables.invalidate_all()
        if self._config.stage1:
            self._forget1(tag for tag in self._tags1() if tag[0] >= 0)
        return _OK

    # -- stage 1 --------------------------------------------------------------------------------------------

    def _tlbi_nh_all(self, low: int, high: int) -> int:
        vmid = low >> 32 & 0xFFFF
        self._forget1(tag for tag in self._tags1() if tag[0] == vmid)
        return _OK

    def _tlbi_nh_asid(self, low: int, high: int) -> int:
        """4.4.2.2: what is not global."""
        self._forget1(iter([(low >> 32 & 0xFFFF, low >> 48)]))
        return _OK

    def _tlbi_nh_va(self, low: int, high: int) -> int:
        """4.4.2.4: global pages of the VMID too."""
        return self._forget_address(low, high, _with_global(low >> 32 & 0xFFFF, low >> 48))

    def _tlbi_nh_vaa(self, low: int, high: int) -> int:
        vmid = low >> 32 & 0xFFFF
        return self._forget_address(low, high, [tag for tag in self._tags1() if tag[0] == vmid])

    def _tlbi_el2_all(self, low: int, high: int) -> int:
        self._forget1(tag for tag in self._tags1() if tag[0] < 0)
        return _OK

    def _tlbi_el2_asid(self, low: int, high: int) -> int:
        self._forget1(iter([(EL2_E2H, low >> 48)]))
        return _OK

    def _tlbi_el2_va(self, low: int, high: int) -> int:
        """4.4.2.8: CR2.E2H says of which world, and whether there is an ASID."""
        e2h = self._registers.words[CR2] & E2H
        return self._forget_address(low, high, _with_global(EL2_E2H, low >> 48) if e2h else [(EL2, 0)])

    def _tlbi_el2_vaa(self, low: int, high: int) -> int:
        world = EL2_E2H if self._registers.words[CR2] & E2H else EL2
        return self._forget_address(low, high, [tag for tag in self._tags1() if tag[0] == world])

    def _tags1(self) -> list[Stage1Tag]:
        return cast("list[Stage1Tag]", list({*self._tlb1.tags(), *self._tables1.tags()}))

    def _forget1(self, tags: Iterator[Stage1Tag]) -> None:
        for tag in tags:
            self._tlb1.invalidate_tag(tag)
            self._tables1.invalidate_tag(tag)

    def _forget_address(self, low: int, high: int, tags: list[Stage1Tag]) -> int:
        page = high >> 12 & _VA_PAGES
        count, ttl = 1, 0
        if high >> 10 & 3 and self._config.ril:
            scope = self._range(low, high, page)
            if scope is None:
                return CERROR_ILL
            count, ttl = scope
        if count:
            for tag in tags:
                self._tlb1.invalidate_level(tag, page, count, ttl)
                if not high & _LEAF:
                    self._tables1.invalidate_pages(tag, page, count, ttl)
        return _OK

    def _range(self, low: int, high: int, page: int) -> tuple[int, int] | None:
        """4.4.1.1 with TG not 0: pages and level hint; no pages if nothing need go, ``None`` if reserved."""
        granule = high >> 10 & 3
        num, scale, ttl = low >> 12 & 0x1F, low >> 20 & 0x1F, high >> 8 & 3
        if granule == _TG_16K and ttl == 1:
            ttl = 0
        if not (num or scale or ttl):
            return None
        if granule != _TG_4K or (ttl and page & (1 << 9 * (3 - ttl)) - 1):
            return 0, 0
        return num + 1 << scale, ttl


def _with_global(space: int, asid: int) -> list[Stage1Tag]:
    return [(space, asid), (space, GLOBAL), (space, GLOBAL - 1)]
