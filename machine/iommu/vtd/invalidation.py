# SPDX-License-Identifier: GPL-2.0-or-later
"""What the invalidation commands drop (VT-d specification 6.5): granularities, and the register-based interface.

The unit drops exactly what the command names and nothing more, although the manual allows it to drop more: what
software forgot to name must stay visible as a stale entry.

The register-based interface (6.5.1) is CCMD for the context cache and IVA with IOTLB for translations.  A command
is done when its write returns.  Hardware reports the granularity it used, and 0 if it ignored a wrong command.
"""

from collections.abc import Callable
from typing import Final

from machine.iommu.unit import Counters
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.registers import CCMD, GSTS, QIE, RegisterFile
from machine.iommu.vtd.tables import ContextCache
from machine.iommu.vtd.walk import SecondLevel

GLOBAL: Final = 1
DOMAIN: Final = 2
DEVICE: Final = 3
PAGES: Final = 3

FUNCTION_MASKS: Final = (0b000, 0b100, 0b110, 0b111)
"""Bits of the source id that each FM value ignores."""

ICC: Final = 1 << 31
IVT: Final = 1 << 31


class Invalidation:
    """The commands, whoever gives them.  Each answers the granularity it used, 0 for a command that is wrong."""

    def __init__(
        self, config: VtdConfig, contexts: ContextCache, second_level: SecondLevel, counters: Counters
    ) -> None:
        self._contexts: Final = contexts
        self._iotlb: Final = second_level.iotlb
        self._structures: Final = second_level.structures
        self._commands: Final = counters.commands
        self._mamv: Final = config.max_address_mask
        self._page_selective: Final = config.page_selective

    def context_cache(self, granularity: int, did: int, sid: int, function_mask: int) -> int:
        """Context-cache invalidation (6.5.1.1, 6.5.2.1)."""
        if granularity == GLOBAL:
            name = "context-cache global"
            self._contexts.invalidate_all()
        elif granularity == DOMAIN:
            name = "context-cache domain"
            self._contexts.invalidate_domain(did)
        elif granularity == DEVICE:
            name = "context-cache device"
            self._contexts.invalidate_device(did, sid, FUNCTION_MASKS[function_mask])
        else:
            return 0
        self._commands[name] += 1
        return granularity

    def iotlb(self, granularity: int, did: int, address: int) -> int:
        """IOTLB invalidation (6.5.1.2, 6.5.2.2).  ``address`` is laid out as IVA: 63:12 page, 6 IH, 5:0 AM."""
        if granularity == PAGES and self._page_selective:
            order = address & 0x3F
            if order > self._mamv:
                return 0
            name = "IOTLB page"
            count = 1 << order
            page = address >> 12 & -count
            self._iotlb.invalidate_pages(did, page, count)
            if not address & 0x40:
                self._structures.invalidate_pages(did, page, count)
        elif granularity >= DOMAIN:
            granularity = DOMAIN
            name = "IOTLB domain"
            self._iotlb.invalidate_tag(did)
            self._structures.invalidate_tag(did)
        elif granularity == GLOBAL:
            name = "IOTLB global"
            self.all_translations()
        else:
            return 0
        self._commands[name] += 1
        return granularity

    def all_entries(self) -> None:
        """Empty the caches of everything above page tables."""
        self._contexts.invalidate_all()

    def all_translations(self) -> None:
        """Empty the IOTLB and the paging-structure caches."""
        self._iotlb.invalidate_all()
        self._structures.invalidate_all()


class DrainingInvalidation(Invalidation):
    """Of a unit with CAP.RWBF: the write buffer is drained before anything is dropped (11.4.5.1, 11.4.6.2)."""

    def __init__(
        self,
        config: VtdConfig,
        contexts: ContextCache,
        second_level: SecondLevel,
        counters: Counters,
        drain: Callable[[], None],
    ) -> None:
        super().__init__(config, contexts, second_level, counters)
        self._drain: Final = drain

    def context_cache(self, granularity: int, did: int, sid: int, function_mask: int) -> int:
        self._drain()
        return super().context_cache(granularity, did, sid, function_mask)

    def iotlb(self, granularity: int, did: int, address: int) -> int:
        self._drain()
        return super().iotlb(granularity, did, address)


class RegisterInvalidation:
    """CCMD, IVA and IOTLB.  They ignore commands while queued invalidation is on (6.5.2)."""

    def __init__(self, config: VtdConfig, registers: RegisterFile, invalidation: Invalidation) -> None:
        self._registers: Final = registers
        self._invalidation: Final = invalidation
        self._ccmd: Final = CCMD >> 2
        self._iva: Final = config.iotlb_offset >> 2
        self._iotlb: Final = config.iotlb_offset + 8 >> 2
        registers.on_write[self._ccmd + 1] = self._context_command
        registers.on_write[self._iotlb + 1] = self._iotlb_command

    def _context_command(self, high: int) -> None:
        if not high & ICC:
            return
        dwords = self._registers.dwords
        low = dwords[self._ccmd]
        used = 0
        if not dwords[GSTS >> 2] & QIE:
            used = self._invalidation.context_cache(high >> 29 & 3, low & 0xFFFF, low >> 16, high & 3)
        dwords[self._ccmd + 1] = dwords[self._ccmd + 1] & ~(ICC | 3 << 27) | used << 27

    def _iotlb_command(self, high: int) -> None:
        if not high & IVT:
            return
        dwords = self._registers.dwords
        used = 0
        if not dwords[GSTS >> 2] & QIE:
            address = dwords[self._iva + 1] << 32 | dwords[self._iva]
            used = self._invalidation.iotlb(high >> 28 & 3, high & 0xFFFF, address)
        dwords[self._iotlb + 1] = dwords[self._iotlb + 1] & ~(IVT | 3 << 25) | used << 25
