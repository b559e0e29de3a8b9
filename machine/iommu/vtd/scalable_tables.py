# SPDX-License-Identifier: GPL-2.0-or-later
"""Scalable mode's structures (VT-d specification 3.4.3, 9.2, 9.4 to 9.6): root, context, PASID directory, PASID table.

A root entry points to two context tables, for devices 0-15 and 16-31 of a bus.  A context entry (32 bytes) points to
a directory of PASID tables; each table has 64 entries of 64 bytes, and each entry is an address space.  A request
without a PASID uses the one that its context entry names (RID_PASID).
"""

from typing import Final, NamedTuple

from base.bits import Layout, bit, bits
from machine.iommu.vtd.config import SAGAW_BIT, VtdConfig
from machine.iommu.vtd.reasons import (
    SM_CONTEXT_ACCESS,
    SM_CONTEXT_INVALID,
    SM_CONTEXT_NOT_PRESENT,
    SM_CONTEXT_RESERVED,
    SM_DIRECTORY_ACCESS,
    SM_DIRECTORY_NOT_PRESENT,
    SM_DIRECTORY_RESERVED,
    SM_PASID_ACCESS,
    SM_PASID_INVALID,
    SM_PASID_NOT_PRESENT,
    SM_PASID_RESERVED,
    SM_ROOT_ACCESS,
    SM_ROOT_NOT_PRESENT,
    SM_ROOT_RESERVED,
)
from machine.iommu.vtd.tables import ADDRESS
from machine.iommu.vtd.visibility import Words


class ScalableRoot(Layout):
    """Either half of a root entry."""

    pointer = bits(63, 12, "context-table pointer")
    p = bit(0)


class ScalableContext0(Layout):
    directory = bits(63, 12, "PASID directory pointer")
    pdts = bits(11, 9, "log2 of the directory's entries - 7")
    pre = bit(4, "page requests")
    paside = bit(3, "requests with PASID")
    dte = bit(2, "device TLB")
    fpd = bit(1)
    p = bit(0)


class ScalableContext1(Layout):
    rid_priv = bit(20, "requests without PASID are supervisor requests")
    rid_pasid = bits(19, 0, "PASID of requests without one")


class DirectoryEntry(Layout):
    table = bits(63, 12, "PASID table pointer")
    fpd = bit(1)
    p = bit(0)


class Pasid0(Layout):
    ssptptr = bits(63, 12, "second-stage page-table pointer")
    ssade = bit(9, "second-stage accessed and dirty bits")
    pgtt = bits(8, 6, "PASID granular translation type")
    aw = bits(4, 2, "address width of the second stage")
    fpd = bit(1)
    p = bit(0)


class Pasid1(Layout):
    pat = bits(63, 32)
    emte = bit(26)
    cd = bit(25)
    pgsnp = bit(24, "memory accesses are snooped")
    pwsnp = bit(23, "page walks are snooped")
    did = bits(15, 0, "domain identifier")


class Pasid2(Layout):
    fsptptr = bits(63, 12, "first-stage page-table pointer")
    eafe = bit(7, "extended accessed bit")
    smep = bit(6)
    nxe = bit(5)
    wpe = bit(4, "supervisor writes need R/W")
    fspm = bits(3, 2, "first-stage paging mode: 0 four levels, 1 five")
    sre = bit(0, "supervisor requests")


PGTT_FIRST: Final = 1
PGTT_SECOND: Final = 2
PGTT_NESTED: Final = 3
PGTT_PASS_THROUGH: Final = 4


class Requester(NamedTuple):
    """What root and context entries say about one source id."""

    code: int
    fpd: bool
    directory: int = 0
    pasids: int = 0
    """PASIDs that the directory covers."""
    rid_pasid: int = 0
    rid_supervisor: bool = False
    with_pasid: bool = False
    device_tlb: bool = False


class AddressSpace(NamedTuple):
    """What directory and table say about one PASID of a requester."""

    code: int
    fpd: bool
    pasid: int = 0
    did: int = 0
    kind: int = 0
    """``PGTT_*``."""
    limit: int = -1
    """Last address that the second stage translates, or that passes through."""
    ss_root: int = 0
    ss_shift: int = 0
    ss_update: bool = False
    """Accessed and dirty bits of the second stage are kept."""
    fs_root: int = 0
    fs_shift: int = 0
    supervisor: bool = False
    write_protect: bool = False
    extended_accessed: bool = False
    snooped_walk: bool = False
    snooped: bool = False


class ScalableTables:
    """Reads the structures.  ``root_table`` is the address that SRTP latched."""

    def __init__(self, config: VtdConfig, words: Words) -> None:
        self._words: Final = words
        self.root_table = 0
        above = ADDRESS & ~((1 << config.host_address_width) - 1)
        self.root_reserved: Final = ScalableRoot.reserved() | above
        off = (0 if config.device_tlb else ScalableContext0.dte.mask) | ScalableContext0.pre.mask
        self.context_reserved: Final = (
            ScalableContext0.reserved() | above | off,
            ScalableContext1.reserved() | (0 if config.supervisor_requests else ScalableContext1.rid_priv.mask),
            (1 << 64) - 1,
            (1 << 64) - 1,
        )
        self.directory_reserved: Final = DirectoryEntry.reserved() | above
        self.pasid_reserved: Final = (
            Pasid0.reserved() | (0 if config.second_stage_accessed_dirty else Pasid0.ssade.mask),
            Pasid1.reserved()
            | (0xFFFF & ~((1 << config.domain_id_bits) - 1))
            | (0 if config.page_walk_snoop else Pasid1.pwsnp.mask)
            | (0 if config.snoop_control else Pasid1.pgsnp.mask),
            Pasid2.reserved()
            | (0 if config.extended_accessed else Pasid2.eafe.mask)
            | (0 if config.supervisor_requests else Pasid2.sre.mask),
            *[(1 << 64) - 1] * 5,
        )
        self.pointer_reserved: Final = above
        there = {
            PGTT_FIRST: config.first_stage,
            PGTT_SECOND: config.second_stage,
            PGTT_NESTED: config.nested,
            PGTT_PASS_THROUGH: config.pass_through,
        }
        self.kinds: Final = frozenset(kind for kind, supported in there.items() if supported)
        self.widths: Final = {SAGAW_BIT[width]: width for width in config.address_widths}
        self._mgaw: Final = config.max_guest_address_width
        self.modes: Final = {0: 39, 1: 48} if config.five_levels else {0: 39}
        """Lowest address bit of the top first-stage index, for each FSPM."""
        self._pasid_limit: Final = 1 << config.pasid_bits

    def read(self, maddr: int, count: int) -> tuple[int, ...] | None:
        """``count`` words at ``maddr``, ``None`` if they are not all RAM."""
        first, words = maddr >> 3, self._words
        if first + count > len(words):
            return None
        return tuple(words[index] for index in range(first, first + count))

    def root_half_at(self, sid: int) -> int:
        """Address of the half of a root entry that leads to ``sid``."""
        return self.root_table + 16 * (sid >> 8 & 0xFF) + (sid >> 7 & 1) * 8

    def requester(self, sid: int) -> Requester:
        """Look ``sid`` up: root and context entry."""
        root = self.read(self.root_half_at(sid), 1)
        if root is None:
            return Requester(SM_ROOT_ACCESS, False)
        if not root[0] & ScalableRoot.p.mask:
            return Requester(SM_ROOT_NOT_PRESENT, False)
        if root[0] & self.root_reserved:
            return Requester(SM_ROOT_RESERVED, False)
        entry = self.read((root[0] & ADDRESS) + 32 * (sid & 0x7F), 4)
        if entry is None:
            return Requester(SM_CONTEXT_ACCESS, False)
        fpd = bool(entry[0] & ScalableContext0.fpd.mask)
        if not entry[0] & ScalableContext0.p.mask:
            return Requester(SM_CONTEXT_NOT_PRESENT, fpd)
        if any(word & reserved for word, reserved in zip(entry, self.context_reserved)):
            return Requester(SM_CONTEXT_RESERVED, fpd)
        pasids = 64 << ScalableContext0.pdts.get(entry[0]) + 7
        if pasids > self._pasid_limit and pasids > 64 << 7:
            return Requester(SM_CONTEXT_INVALID, fpd)
        return Requester(
            0,
            fpd,
            entry[0] & ADDRESS,
            min(pasids, self._pasid_limit),
            ScalableContext1.rid_pasid.get(entry[1]),
            bool(entry[1] & ScalableContext1.rid_priv.mask),
            bool(entry[0] & ScalableContext0.paside.mask),
            bool(entry[0] & ScalableContext0.dte.mask),
        )

    def address_space(self, requester: Requester, pasid: int) -> AddressSpace:
        """Look ``pasid`` up: directory and table entry."""
        fpd = requester.fpd
        directory = self.read(requester.directory + 8 * (pasid >> 6), 1)
        if directory is None:
            return AddressSpace(SM_DIRECTORY_ACCESS, fpd)
        fpd = fpd or bool(directory[0] & DirectoryEntry.fpd.mask)
        if not directory[0] & DirectoryEntry.p.mask:
            return AddressSpace(SM_DIRECTORY_NOT_PRESENT, fpd)
        if directory[0] & self.directory_reserved:
            return AddressSpace(SM_DIRECTORY_RESERVED, fpd)
        entry = self.read((directory[0] & ADDRESS) + 64 * (pasid & 63), 8)
        if entry is None:
            return AddressSpace(SM_PASID_ACCESS, fpd)
        return self.judge(entry, pasid, fpd)

    def judge(self, entry: tuple[int, ...], pasid: int, fpd: bool) -> AddressSpace:
        """What a PASID table entry means; ``fpd``: what the entries above it said."""
        fpd = fpd or bool(entry[0] & Pasid0.fpd.mask)
        if not entry[0] & Pasid0.p.mask:
            return AddressSpace(SM_PASID_NOT_PRESENT, fpd)
        kind = Pasid0.pgtt.get(entry[0])
        first, second = kind in (PGTT_FIRST, PGTT_NESTED), kind in (PGTT_SECOND, PGTT_NESTED)
        if any(word & reserved for word, reserved in zip(entry, self.pasid_reserved)):
            return AddressSpace(SM_PASID_RESERVED, fpd)
        if (second and entry[0] & self.pointer_reserved) or (kind == PGTT_FIRST and entry[2] & self.pointer_reserved):
            return AddressSpace(SM_PASID_RESERVED, fpd)
        width = self.widths.get(Pasid0.aw.get(entry[0]), 0)
        fs_shift = self.modes.get(Pasid2.fspm.get(entry[2]), 0)
        if kind not in self.kinds or (first and not fs_shift) or (kind != PGTT_FIRST and not width):
            return AddressSpace(SM_PASID_INVALID, fpd)
        return AddressSpace(
            0,
            fpd,
            pasid,
            Pasid1.did.get(entry[1]),
            kind,
            (1 << min(width, self._mgaw)) - 1,
            entry[0] & ADDRESS,
            width - 9,
            bool(entry[0] & Pasid0.ssade.mask),
            entry[2] & ADDRESS,
            fs_shift,
            bool(entry[2] & Pasid2.sre.mask),
            bool(entry[2] & Pasid2.wpe.mask),
            bool(entry[2] & Pasid2.eafe.mask),
            bool(entry[1] & Pasid1.pwsnp.mask),
            bool(entry[1] & Pasid1.pgsnp.mask),
        )
