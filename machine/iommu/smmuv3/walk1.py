# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage 1 walk: VMSAv8-64 descriptors with a 4 KiB granule (Arm ARM D8.3, D8.4; IHI 0070, 3.4 and 5.4).

It differs from the stage 2 walk in that table descriptors restrict what lies below them, that privileged and
unprivileged accesses have rights of their own, and that the tables may lie in intermediate addresses: then every
descriptor is looked for through stage 2, where it may fault (CLASS is TT).
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from base.bits import Layout, bit, bits
from machine.iommu.smmuv3.cd import Context, Half
from machine.iommu.smmuv3.events import CLASS_TT, F_ACCESS, F_ADDR_SIZE, F_TRANSLATION, F_WALK_EABT
from machine.iommu.smmuv3.tlb import KnownTables1
from machine.iommu.smmuv3.walk import (
    ADDRESS,
    AF,
    ALLOW_FETCH,
    ALLOW_PRIVILEGED_FETCH,
    ALLOW_PRIVILEGED_READ,
    ALLOW_PRIVILEGED_WRITE,
    ALLOW_READ,
    ALLOW_WRITE,
    DBM,
    LAST_LEVEL,
    SET_ACCESSED,
    WRITABLE_CLEAN,
    Stop,
    Visit,
)

DESCRIPTOR1: Final = "stage 1 descriptor"
VA_BITS: Final = (1 << 56) - 1
"""What of an input address takes part in translation once its top byte is checked or ignored."""


class LeafDescriptor1(Layout):
    """A stage 1 block or page descriptor."""

    ignored = bits(63, 59)
    software = bits(58, 55)
    uxn = bit(54, "XN where there is one privilege")
    pxn = bit(53)
    contiguous = bit(52)
    dbm = bit(51)
    address = bits(47, 12)
    ng = bit(11)
    af = bit(10)
    sh = bits(9, 8)
    read_only = bit(7, "AP[2]")
    unprivileged = bit(6, "AP[1]")
    ns = bit(5)
    attr_index = bits(4, 2)
    kind = bits(1, 0)


class TableDescriptor1(Layout):
    """What a stage 1 table descriptor withholds from everything below it."""

    ns = bit(63)
    read_only = bit(62, "APTable[1]")
    privileged = bit(61, "APTable[0]")
    uxn = bit(60)
    pxn = bit(59)
    address = bits(47, 12)
    kind = bits(1, 0)


READ_ONLY: Final = LeafDescriptor1.read_only.mask
NOT_GLOBAL: Final = LeafDescriptor1.ng.mask
_INHERITED: Final = TableDescriptor1.pack(read_only=1, privileged=1, uxn=1, pxn=1)

Locate = Callable[[int], "int | Stop"]


class Leaf1(NamedTuple):
    """Where a stage 1 walk ended well."""

    base: int
    """Output address of the first byte that the leaf maps."""
    order: int
    allowed: int
    descriptor: int
    inherited: int
    where: int
    """Address of the descriptor: intermediate where stage 2 translates."""


def permissions1(descriptor: int, inherited: int, context: Context) -> int:
    """The ``ALLOW_*`` bits of a leaf below tables that withhold ``inherited`` (Arm ARM D8.4)."""
    read_only = descriptor & READ_ONLY or inherited & TableDescriptor1.read_only.mask
    if context.one_privilege:
        never = descriptor & LeafDescriptor1.uxn.mask or inherited & TableDescriptor1.uxn.mask
        allowed = ALLOW_READ | ALLOW_PRIVILEGED_READ
        if not read_only:
            allowed |= ALLOW_WRITE | ALLOW_PRIVILEGED_WRITE
        if not never and (read_only or not context.wxn):
            allowed |= ALLOW_FETCH | ALLOW_PRIVILEGED_FETCH
        return allowed
    open_to_all = descriptor & LeafDescriptor1.unprivileged.mask and not inherited & TableDescriptor1.privileged.mask
    allowed = 0
    if open_to_all:
        allowed |= ALLOW_READ if read_only else ALLOW_READ | ALLOW_WRITE
    if not (open_to_all and context.pan):
        allowed |= ALLOW_PRIVILEGED_READ if read_only else ALLOW_PRIVILEGED_READ | ALLOW_PRIVILEGED_WRITE
    if not (descriptor & LeafDescriptor1.uxn.mask or inherited & TableDescriptor1.uxn.mask) and (
        not context.wxn or not allowed & ALLOW_WRITE
    ):
        allowed |= ALLOW_FETCH
    if not (descriptor & LeafDescriptor1.pxn.mask or inherited & TableDescriptor1.pxn.mask) and (
        read_only or not (open_to_all or context.wxn)
    ):
        allowed |= ALLOW_PRIVILEGED_FETCH
    return allowed


def in_range(half: Half, address: int) -> bool:
    """Whether a 64-bit input address is a sign-extension of what the range covers (3.4.1)."""
    bits_above = (VA_BITS if half.top_byte_ignored else (1 << 64) - 1) >> half.input_bits
    return address >> half.input_bits & bits_above == (bits_above if half.upper else 0)


def walk_stage1(
    words: "Sequence[int] | memoryview[int]",
    limit: int,
    context: Context,
    half: Half,
    va: int,
    locate: Locate | None,
    known: KnownTables1 | None = None,
    visits: list[Visit] | None = None,
) -> Leaf1 | Stop:
    """Walk ``va``, which :func:`in_range` accepts, cut to ``VA_BITS``; RAM is ``words``, ``limit`` of them.

    ``locate`` gives the machine address behind a table's address; ``None``: they are the same.
    ``known``, if given, are cached table descriptors, used and added to; ``visits`` receives what was read.
    """
    if half.disabled:
        return _stop(F_TRANSLATION, context)
    table, level, inherited = half.root, half.start_level, 0
    if known is not None:
        for above in range(LAST_LEVEL - 1, half.start_level - 1, -1):
            cached = known[above].get(va >> 39 - 9 * above)
            if cached is not None:
                table, inherited = cached
                level = above + 1
                break
    resolved = (1 << half.input_bits) - 1
    while True:
        shift = 39 - 9 * level
        slot = (va & resolved) >> shift if level == half.start_level else va >> shift & 0x1FF
        where = table + 8 * slot
        maddr = where if locate is None else locate(where)
        if isinstance(maddr, Stop):
            return maddr
        index = maddr >> 3
        if index >= limit:
            return Stop(F_WALK_EABT, maddr, stage2=False, details=CLASS_TT)
        descriptor = words[index]
        if visits is not None:
            visits.append(Visit(DESCRIPTOR1, maddr, (descriptor,), level, slot))
        kind = descriptor & 3
        if not kind & 1 or (kind == 1 and level in (0, LAST_LEVEL)):
            return _stop(F_TRANSLATION, context)
        if descriptor & context.oversize:
            return _stop(F_ADDR_SIZE, context)
        if kind == 1 or level == LAST_LEVEL:
            break
        table = descriptor & ADDRESS
        if half.hierarchical:
            inherited |= descriptor & _INHERITED
        if known is not None:
            known[level][va >> shift] = (table, inherited)
        level += 1
    allowed = permissions1(descriptor, inherited, context)
    if not descriptor & AF:
        if context.sets_accessed:
            allowed |= SET_ACCESSED
        elif not context.affd:
            return _stop(F_ACCESS, context)
    if context.sets_dirty and descriptor & DBM and descriptor & READ_ONLY:
        allowed |= WRITABLE_CLEAN
    return Leaf1(descriptor & ADDRESS & -(1 << shift), shift - 12, allowed, descriptor, inherited, where)


def _stop(number: int, context: Context) -> Stop:
    return Stop(number, stage2=False, records=context.records, stalls=context.stalls)
