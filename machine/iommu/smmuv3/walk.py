# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage 2 walk: VMSAv8-64 descriptors with a 4 KiB granule (Arm ARM D8.3; IHI 0070, 3.4).

Levels 0 to 3 resolve input address bits 47:39, 38:30, 29:21 and 20:12.  The start level may index up to 16
concatenated tables, whose descriptors simply follow one another.  Faults are found in the architecture's
order: translation, then address size, then access flag; permission is the caller's check, because a
translation that lacks permission may still be cached.  The walk writes nothing: a leaf that hardware is to mark
(HTTU) is returned with ``SET_ACCESSED`` or ``WRITABLE_CLEAN`` among its rights, for the caller to do so.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from base.bits import Layout, bit, bits
from machine.iommu.smmuv3.events import CLASS_IN, F_ACCESS, F_ADDR_SIZE, F_TRANSLATION, F_WALK_EABT
from machine.iommu.smmuv3.tlb import KnownTables

ALLOW_READ: Final = 1
ALLOW_WRITE: Final = 2
ALLOW_FETCH: Final = 4
"""Unprivileged instruction fetch."""
ALLOW_PRIVILEGED_FETCH: Final = 8
ALLOW_PRIVILEGED_READ: Final = 16
ALLOW_PRIVILEGED_WRITE: Final = 32
"""Stage 1 tells privileged data accesses from others; stage 2 gives both alike."""
WRITABLE_CLEAN: Final = 64
"""A write makes the page dirty in its descriptor, and is then allowed."""
SET_ACCESSED: Final = 128
"""AF is 0 and hardware sets it; no cached translation says so."""
DEVICE: Final = 256
"""Stage 2: memory of a Device type, which STE.S2PTW keeps table walks away from."""
EVERYTHING: Final = 63
"""What an absent stage 2 allows."""


class LeafDescriptor(Layout):
    """A stage 2 block or page descriptor; the output address starts at bit 30 or 21 in a block."""

    ignored = bits(63, 59)
    software = bits(58, 55)
    xn = bits(54, 53)
    contiguous = bit(52)
    dbm = bit(51)
    address = bits(47, 12)
    fnxs = bit(11)
    af = bit(10)
    sh = bits(9, 8)
    s2ap = bits(7, 6)
    memattr = bits(5, 2)
    kind = bits(1, 0)


ADDRESS: Final = LeafDescriptor.address.mask
AF: Final = LeafDescriptor.af.mask
DBM: Final = LeafDescriptor.dbm.mask
_NORMAL: Final = 3 << 4
"""MemAttr[3:2], which are 0 for the Device types."""
LAST_LEVEL: Final = 3


class Visit(NamedTuple):
    """One structure that was read on the way: raw, for ``explain`` to put into words."""

    name: str
    maddr: int
    words: tuple[int, ...]
    level: int | None = None
    slot: int | None = None


DESCRIPTOR: Final = "stage 2 descriptor"


class Stage2Controls(NamedTuple):
    """What a stage 2 does about faults and flags."""

    records: bool
    """STE.S2R: faults of this stage are recorded."""
    stalls: bool = False
    """STE.S2S: they stall."""
    protects_walks: bool = False
    """STE.S2PTW: no table or CD is fetched from Device memory."""
    sets_accessed: bool = False
    """STE.S2HA."""
    sets_dirty: bool = False
    """STE.S2HA and S2HD."""


class Stage2(NamedTuple):
    """The stage 2 half of a stream's configuration, as the walk needs it."""

    vmid: int
    root: int
    """Machine address of the first start-level descriptor, aligned to the start-level tables' size."""
    start_level: int
    input_bits: int
    """64 - S2T0SZ: wider input addresses fault."""
    oversize: int
    """Descriptor address bits above the effective S2PS."""
    affd: bool
    xnx: bool
    controls: Stage2Controls


Leaf = tuple[int, int, int, int]
"""Where a walk ended well: output address of the first byte that the leaf maps; log2 of the 4 KiB pages that it
maps (0, 9 or 18); what it allows; index of the descriptor among the words of RAM."""


class Stop(NamedTuple):
    """Where a walk ended with a fault."""

    number: int
    fetch: int = 0
    """Machine address of what could not be fetched, for F_WALK_EABT and F_CD_FETCH."""
    stage2: bool = True
    details: int = CLASS_IN
    """CLASS and TTRnW, in place for an event's second word."""
    ipa: int = 0
    """What stage 2 was asked to translate."""
    ssid: int | None = None
    """C_BAD_SUBSTREAMID: the index that was looked up, where it was not the transaction's."""
    records: bool = True
    stalls: bool = False
    """CD.R and CD.S, for a fault of stage 1; stage 2 has its :class:`Stage2Controls`."""


_WALK_FAULT: Final = {number: Stop(number) for number in (F_TRANSLATION, F_ADDR_SIZE, F_ACCESS)}
_STOP_TRANSLATION: Final = _WALK_FAULT[F_TRANSLATION]
_STOP_ADDR_SIZE: Final = _WALK_FAULT[F_ADDR_SIZE]
_STOP_ACCESS: Final = _WALK_FAULT[F_ACCESS]

_FETCH_XNX: Final = (
    ALLOW_FETCH | ALLOW_PRIVILEGED_FETCH,
    ALLOW_FETCH,
    0,
    ALLOW_PRIVILEGED_FETCH,
)
"""What XN[1:0] (bits 54:53) allows when XNX is implemented."""


def permissions(descriptor: int, xnx: bool) -> int:
    """The ``ALLOW_*`` bits of a leaf: S2AP for data, XN alone for instruction fetches (VMSAv8-64)."""
    allowed = descriptor >> 6 & 3
    if xnx:
        return allowed | _FETCH_XNX[descriptor >> 53 & 3]
    return allowed if descriptor >> 54 & 1 else allowed | ALLOW_FETCH | ALLOW_PRIVILEGED_FETCH


def walk_stage2(
    words: "Sequence[int] | memoryview[int]",
    limit: int,
    stage2: Stage2,
    ipa: int,
    known: KnownTables | None = None,
    visits: list[Visit] | None = None,
) -> Leaf | Stop:
    """Walk ``ipa`` through the tables of ``stage2``; ``words`` is RAM, ``limit`` its length in words.

    ``known``, if given, are cached table descriptors: the walk starts below the deepest one and adds what it reads.
    ``visits``, if given, receives every descriptor that was read.
    """
    _vmid, root, level, input_bits, oversize, affd, xnx, controls = stage2
    if ipa >> input_bits:
        return _STOP_TRANSLATION
    shift = 39 - 9 * level
    slot = ipa >> shift
    table = root
    if known is not None:
        for above in (2, 1, 0):
            cached = known[above].get(ipa >> 39 - 9 * above)
            if cached is not None:
                table = cached
                level = above + 1
                shift = 39 - 9 * level
                slot = ipa >> shift & 0x1FF
                break
    while True:
        index = (table >> 3) + slot
        if index >= limit:
            return Stop(F_WALK_EABT, index << 3)
        descriptor = words[index]
        if visits is not None:
            visits.append(Visit(DESCRIPTOR, index << 3, (descriptor,), level, slot))
        if not descriptor & 1:
            return _STOP_TRANSLATION
        if level == LAST_LEVEL:
            if not descriptor & 2:
                return _STOP_TRANSLATION
            break
        if not descriptor & 2:
            if not level:
                return _STOP_TRANSLATION
            break
        if descriptor & oversize:
            return _STOP_ADDR_SIZE
        table = descriptor & ADDRESS
        if known is not None:
            known[level][ipa >> shift] = table
        level += 1
        shift -= 9
        slot = ipa >> shift & 0x1FF
    if descriptor & oversize:
        return _STOP_ADDR_SIZE
    allowed = permissions(descriptor, xnx)
    if not descriptor & AF:
        if controls.sets_accessed:
            allowed |= SET_ACCESSED
        elif not affd:
            return _STOP_ACCESS
    if not descriptor & _NORMAL:
        allowed |= DEVICE
    if descriptor & DBM and not allowed & ALLOW_WRITE and controls.sets_dirty:
        allowed |= WRITABLE_CLEAN
    return (descriptor & ADDRESS & -(1 << shift), shift - 12, allowed, index)
