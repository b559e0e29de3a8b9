# SPDX-License-Identifier: GPL-2.0-or-later
"""Root and context tables (VT-d specification 3.4, 9.1, 9.3) and the cache of what they say (6.2.2).

The root table has an entry per bus, each pointing to a context table with an entry per device and function.
Both kinds are 16 bytes, read here as a low and a high 64-bit word.
"""

from typing import Final, NamedTuple

from base.bits import Layout, bit, bits
from machine.iommu.replacement import Replacement, make_room
from machine.iommu.vtd.config import SAGAW_BIT, VtdConfig
from machine.iommu.vtd.reasons import (
    CONTEXT_ACCESS,
    CONTEXT_INVALID,
    CONTEXT_NOT_PRESENT,
    CONTEXT_RESERVED,
    ROOT_ACCESS,
    ROOT_NOT_PRESENT,
    ROOT_RESERVED,
)
from machine.iommu.vtd.visibility import Words

ADDRESS: Final = (1 << 64) - (1 << 12)
"""Bits 63:12, where every table pointer sits; those above the host address width are reserved."""


class RootLow(Layout):
    ctp = bits(63, 12, "context-table pointer")
    p = bit(0)


class ContextLow(Layout):
    slptptr = bits(63, 12, "second-level page-table pointer")
    tt = bits(3, 2, "translation type")
    fpd = bit(1, "fault processing disable")
    p = bit(0)


class ContextHigh(Layout):
    did = bits(23, 8, "domain identifier")
    avail = bits(6, 3)
    aw = bits(2, 0, "address width")


TT_SECOND_LEVEL: Final = 0
TT_DEVICE_TLB: Final = 1
TT_PASS_THROUGH: Final = 2


class Context(NamedTuple):
    """What the tables say about one source id."""

    limit: int
    """Last address that the second-level tables translate; -1 if they do not translate at all."""
    did: int
    root: int
    """Address of the top second-level table."""
    shift: int
    """Lowest address bit that the top table's index covers: 30 or 39."""
    fpd: bool
    through: int
    """Last address that passes untranslated; -1 unless the translation type is pass-through."""
    code: int
    """Fault reason that every request meets, 0 if the entries are good."""
    device_tlb: bool = False
    """Whether translation requests and translated requests are allowed."""


class ContextTables:
    """Reads root and context entries.  ``root_table`` is the address that SRTP latched."""

    def __init__(self, config: VtdConfig, words: Words) -> None:
        self._words: Final = words
        self.root_table = 0
        above = ADDRESS & ~((1 << config.host_address_width) - 1)
        self.root_reserved: Final = RootLow.reserved() | above
        self.context_reserved_low: Final = ContextLow.reserved()
        self.pointer_reserved: Final = above
        self.context_reserved_high: Final = ContextHigh.reserved() | (
            ContextHigh.did.mask & ~((1 << config.domain_id_bits) - 1 << ContextHigh.did.lsb)
        )
        self.widths: Final = {SAGAW_BIT[width]: width for width in config.address_widths}
        """Input width in bits for each AW value that CAP.SAGAW allows."""
        self._mgaw: Final = config.max_guest_address_width
        allowed = {TT_SECOND_LEVEL: True, TT_DEVICE_TLB: config.device_tlb, TT_PASS_THROUGH: config.pass_through}
        self._types: Final = tuple(kind for kind, there in allowed.items() if there)

    def root_entry_at(self, sid: int) -> int:
        """Address of the root entry for ``sid``."""
        return self.root_table + 16 * (sid >> 8 & 0xFF)

    def read(self, maddr: int) -> tuple[int, int] | None:
        """The two words of a 16-byte entry, ``None`` if they are not RAM."""
        index, words = maddr >> 3, self._words
        if index + 1 >= len(words):
            return None
        return words[index], words[index + 1]

    def fetch(self, sid: int) -> Context:
        """Look ``sid`` up in the tables in memory; the checks are in the order of 3.4.3 and table 26."""
        root = self.read(self.root_entry_at(sid))
        if root is None:
            return _faulty(ROOT_ACCESS)
        if not root[0] & RootLow.p.mask:
            return _faulty(ROOT_NOT_PRESENT)
        if root[0] & self.root_reserved or root[1]:
            return _faulty(ROOT_RESERVED)
        entry = self.read((root[0] & ADDRESS) + 16 * (sid & 0xFF))
        if entry is None:
            return _faulty(CONTEXT_ACCESS)
        return self.judge(*entry)

    def judge(self, low: int, high: int) -> Context:
        """What a context entry means for requests."""
        fpd = bool(low & ContextLow.fpd.mask)
        if not low & ContextLow.p.mask:
            return _faulty(CONTEXT_NOT_PRESENT, fpd)
        kind = ContextLow.tt.get(low)
        if low & self.context_reserved_low or high & self.context_reserved_high:
            return _faulty(CONTEXT_RESERVED, fpd)
        if kind != TT_PASS_THROUGH and low & self.pointer_reserved:
            return _faulty(CONTEXT_RESERVED, fpd)
        width = self.widths.get(ContextHigh.aw.get(high))
        if width is None or kind not in self._types:
            return _faulty(CONTEXT_INVALID, fpd)
        limit = (1 << min(width, self._mgaw)) - 1
        did = ContextHigh.did.get(high)
        if kind == TT_PASS_THROUGH:
            return Context(-1, did, 0, 0, fpd, limit, 0)
        return Context(limit, did, low & ADDRESS, width - 9, fpd, -1, 0, kind == TT_DEVICE_TLB)


def _faulty(code: int, fpd: bool = False) -> Context:
    """A look-up that ends in fault ``code``; such a result is cached under domain id 0 if at all (6.2.2)."""
    return Context(-1, 0, 0, 0, fpd, -1, code)


class ContextCache:
    """Context entries by source id, tagged with the domain id they carried when they were read."""

    def __init__(self, replacement: Replacement | None = None) -> None:
        self.entries: Final[dict[int, Context]] = {}
        self._replacement: Final = replacement

    def keep(self, sid: int, context: Context) -> None:
        """Remember what the tables said about ``sid``, if the replacement policy lets it."""
        if make_room(self.entries, self._replacement):
            self.entries[sid] = context

    def invalidate_all(self) -> None:
        self.entries.clear()

    def invalidate_domain(self, did: int) -> None:
        for sid in [sid for sid, context in self.entries.items() if context.did == did]:
            del self.entries[sid]

    def invalidate_device(self, did: int, sid: int, ignore: int) -> None:
        """Drop what is cached for ``sid``, bits in ``ignore`` aside, if it is tagged ``did``."""
        for function in [sid] if not ignore else [sid & ~ignore | low for low in range(8) if not low & ~ignore]:
            context = self.entries.get(function)
            if context is not None and context.did == did:
                del self.entries[function]
