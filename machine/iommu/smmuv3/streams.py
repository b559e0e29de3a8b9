# SPDX-License-Identifier: GPL-2.0-or-later
"""Stream table and configuration cache: from a StreamID to what its transactions undergo (IHI 0070, 3.3, 5.1, 5.2).

Whatever was fetched is cached, invalid entries of both levels included, until a CMD_CFGI command names it; only a
fetch that aborted is not.
"""

from functools import lru_cache, partial
from typing import Final, NamedTuple, cast

from base.bits import Layout, bit, bits
from machine.iommu.smmuv3.config import OAS_BITS, Smmuv3Config
from machine.iommu.smmuv3.events import C_BAD_STREAMID, F_STE_FETCH, INSTRUCTION, PRIVILEGED
from machine.iommu.smmuv3.registers import STRTAB_BASE, STRTAB_BASE_CFG, RegisterFile, StrtabBaseCfg
from machine.iommu.smmuv3.walk import ALLOW_FETCH, ALLOW_PRIVILEGED_FETCH, ALLOW_READ, Stage2, Visit
from machine.memory import PhysicalMemory


class L1Std(Layout):
    """Level 1 stream table descriptor (5.1)."""

    l2ptr = bits(55, 6)
    span = bits(4, 0, "0: invalid, n: 2^(n-1) STEs")


class Ste0(Layout):
    """STE, first 64-bit word (5.2)."""

    s1cdmax = bits(63, 59)
    s1contextptr = bits(55, 6)
    s1fmt = bits(5, 4)
    config = bits(3, 1)
    v = bit(0)


class Ste1(Layout):
    instcfg = bits(51, 50)
    privcfg = bits(49, 48)
    nscfg = bits(47, 46)
    shcfg = bits(45, 44)
    alloccfg = bits(40, 37)
    mtcfg = bit(36)
    memattr = bits(35, 32)
    strw = bits(31, 30)
    eats = bits(29, 28)
    s1stalld = bit(27)
    s1mpam = bit(26)
    s2fwb = bit(25)
    mev = bit(19)
    ppar = bit(18)
    dcp = bit(17)
    cont = bits(16, 13)
    dre = bit(12)
    s1csh = bits(7, 6)
    s1cor = bits(5, 4)
    s1cir = bits(3, 2)
    s1dss = bits(1, 0)


class Ste2(Layout):
    s2r = bit(58)
    s2s = bit(57)
    s2ha = bit(56)
    s2hd = bit(55)
    s2ptw = bit(54)
    s2affd = bit(53)
    s2endi = bit(52)
    s2aa64 = bit(51)
    s2ps = bits(50, 48)
    s2tg = bits(47, 46)
    s2sh0 = bits(45, 44)
    s2or0 = bits(43, 42)
    s2ir0 = bits(41, 40)
    s2sl0 = bits(39, 38)
    s2t0sz = bits(37, 32)
    s2vmid = bits(15, 0)


class Ste3(Layout):
    s2ttb = bits(51, 4)


L1STD: Final = "L1STD"
STE: Final = "STE"
STE_BYTES: Final = 64
ALL_STREAMS: Final = 32
"""log2 of the number of StreamIDs that there can be."""
CONFIG_ABORT: Final = "abort"
CONFIG_BYPASS: Final = "bypass"
CONFIG_STAGE2: Final = "stage 2"
CONFIG_ILLEGAL: Final = "illegal"


class Stream(NamedTuple):
    """What an STE says, decoded once."""

    config: str
    """One of the ``CONFIG_*`` constants."""
    need_read: int = ALLOW_READ
    """``ALLOW_*`` bit that a read needs: STE.INSTCFG may make reads instruction fetches."""
    read_attributes: int = 0
    """InD and PnU of a read, in place for an event's second word."""
    write_attributes: int = 0
    stage2: Stage2 | None = None
    illegal: str = ""
    """For an illegal STE: the first rule of 5.2.2 that it breaks."""


ABORT: Final = Stream(CONFIG_ABORT)


def decode_ste(ste: tuple[int, int, int, int], config: Smmuv3Config) -> Stream:
    """Decode the first four words of an STE; total over every bit pattern (5.2.2, SteIllegal)."""
    low, attributes, stage2_word, table_word = ste
    if not low & 1:
        return Stream(CONFIG_ILLEGAL, illegal="V is 0")
    what = Ste0.config.get(low)
    if not what & 4:
        return ABORT
    if what & 1:
        return Stream(CONFIG_ILLEGAL, illegal="Config selects stage 1, which IDR0.S1P lacks")
    fetches = privileged = False
    if config.perms_override:
        fetches = Ste1.instcfg.get(attributes) == 3
        privileged = Ste1.privcfg.get(attributes) == 3
    need_read = ALLOW_READ
    if fetches:
        need_read = ALLOW_PRIVILEGED_FETCH if privileged else ALLOW_FETCH
    write_attributes = PRIVILEGED if privileged else 0
    read_attributes = write_attributes | (INSTRUCTION if fetches else 0)
    if not what & 2:
        return Stream(CONFIG_BYPASS, need_read, read_attributes, write_attributes)
    stage2 = decode_stage2(stage2_word, table_word, config)
    if isinstance(stage2, str):
        return Stream(CONFIG_ILLEGAL, illegal=stage2)
    return Stream(CONFIG_STAGE2, need_read, read_attributes, write_attributes, stage2)


def decode_stage2(word: int, table_word: int, config: Smmuv3Config) -> Stage2 | str:
    """The stage 2 fields, or which of them is ILLEGAL."""
    if Ste2.s2s.get(word):
        return "S2S is 1, IDR0.STALL_MODEL has no stalls"
    if not Ste2.s2aa64.get(word):
        return "S2AA64 is 0, IDR0.TTF has no AArch32 tables"
    if Ste2.s2ha.get(word) or Ste2.s2hd.get(word):
        return "S2HA or S2HD is 1, IDR0.HTTU is 0"
    if Ste2.s2tg.get(word):
        return "S2TG is not 4KB"
    output_bits = min(OAS_BITS[min(Ste2.s2ps.get(word), 6)], config.oas)
    base = table_word & Ste3.s2ttb.mask
    if base >> output_bits:
        return f"S2TTB lies beyond {output_bits} bits"
    t0sz = Ste2.s2t0sz.get(word)
    if not max(16, 64 - config.oas) <= t0sz <= 39:
        return f"S2T0SZ {t0sz} is out of range"
    start_level = 2 - Ste2.s2sl0.get(word)
    if start_level < 0 or (not start_level and config.oas < 44):
        return f"S2SL0 {Ste2.s2sl0.get(word)} is reserved"
    input_bits = 64 - t0sz
    resolved = input_bits - (39 - 9 * start_level)
    if not 1 <= resolved <= 13:
        return f"S2SL0 {Ste2.s2sl0.get(word)} does not fit S2T0SZ {t0sz}"
    if Ste2.s2endi.get(word):
        return "S2ENDI is 1, IDR0.TTENDIAN is little-endian only"
    vmid = Ste2.s2vmid.get(word)
    if vmid >> 8 and not config.vmid16:
        return "S2VMID has more than 8 bits, IDR0.VMID16 is 0"
    return Stage2(
        vmid=vmid,
        root=base & -(8 << resolved),
        start_level=start_level,
        input_bits=input_bits,
        oversize=(1 << 48) - (1 << output_bits),
        affd=bool(Ste2.s2affd.get(word)),
        xnx=config.xnx,
        records=bool(Ste2.s2r.get(word)),
    )


class NoStream(NamedTuple):
    """Why a StreamID led to no STE: the event, and the address of the structure for F_STE_FETCH."""

    number: int
    fetch: int = 0


class StreamTable:
    """The stream table in memory and what is cached of it.

    ``translating`` maps the StreamIDs whose cached STE enables stage 2 to (VMID, need_read): the one look-up
    that a translation which hits needs.
    """

    def __init__(self, memory: PhysicalMemory, registers: RegisterFile, config: Smmuv3Config) -> None:
        self._memory: Final = memory
        self._registers: Final = registers
        self._config: Final = config
        self.cached: Final[dict[int, Stream]] = {}
        self.translating: Final[dict[int, tuple[int, int]]] = {}
        self._l1: Final[dict[int, int]] = {}
        self._decode: Final = lru_cache(maxsize=4096)(partial(decode_ste, config=config))
        self._size = 0
        self._base = 0
        self._split: int | None = None
        self.refresh()

    def refresh(self) -> None:
        """Take over STRTAB_BASE and STRTAB_BASE_CFG (6.3.24, 6.3.25).

        The base is aligned to the table by the LOG2SIZE that was written; the ids are limited by SIDSIZE too,
        and no cached STE serves an id beyond them.
        """
        setup = self._registers.words[STRTAB_BASE_CFG]
        base = self._registers.read64(STRTAB_BASE) & 0x00FF_FFFF_FFFF_FFC0
        log2size = StrtabBaseCfg.log2size.get(setup)
        self._size = 1 << min(log2size, self._config.sid_bits)
        if StrtabBaseCfg.fmt.get(setup) == 1:
            split = StrtabBaseCfg.split.get(setup)
            self._split = split if split in (6, 8, 10) else 6
            table = 8 << max(log2size - self._split, 0)
        else:
            self._split = None
            table = STE_BYTES << log2size
        self._base = base & -max(table, STE_BYTES)
        for sid in [sid for sid in self.cached if sid >= self._size]:
            self.invalidate(sid, leaf=True)

    def lookup(self, sid: int) -> Stream | NoStream:
        """The stream's configuration, fetched and cached if need be."""
        known = self.cached.get(sid)
        if known is not None:
            return known
        address = self._locate(sid, self._l1, None)
        if isinstance(address, NoStream):
            return address
        stream = self._fetch(address)
        if isinstance(stream, NoStream):
            return stream
        self.cached[sid] = stream
        if stream.stage2 is not None:
            self.translating[sid] = (stream.stage2.vmid, stream.need_read)
        return stream

    def explain(self, sid: int, visits: list[Visit]) -> Stream | NoStream:
        """The stream's configuration as memory has it now, past every cache."""
        address = self._locate(sid, {}, visits)
        return address if isinstance(address, NoStream) else self._fetch(address, visits)

    def invalidate(self, sid: int, leaf: bool) -> None:
        """CMD_CFGI_STE: forget one STE and, unless ``leaf``, the first-level descriptor that led to it."""
        self.cached.pop(sid, None)
        self.translating.pop(sid, None)
        if not leaf and self._split is not None:
            self._l1.pop(sid >> self._split, None)

    def invalidate_range(self, sid: int, log2count: int) -> None:
        """CMD_CFGI_STE_RANGE: forget 2^``log2count`` STEs, aligned, and what led to them."""
        if log2count >= ALL_STREAMS:
            self.cached.clear()
            self.translating.clear()
            self._l1.clear()
            return
        group = sid >> log2count
        for known in [known for known in self.cached if known >> log2count == group]:
            del self.cached[known]
            self.translating.pop(known, None)
        if self._split is not None:
            first = group << log2count >> self._split
            last = (group + 1 << log2count) - 1 >> self._split
            for index in [index for index in self._l1 if first <= index <= last]:
                del self._l1[index]

    def save(self) -> object:
        return (dict(self.cached), dict(self.translating), dict(self._l1))

    def restore(self, state: object) -> None:
        cached, translating, l1 = cast(tuple[dict[int, Stream], dict[int, tuple[int, int]], dict[int, int]], state)
        self.invalidate_range(0, ALL_STREAMS)
        self.cached.update(cached)
        self.translating.update(translating)
        self._l1.update(l1)
        self.refresh()

    def _locate(self, sid: int, l1_cache: dict[int, int], visits: list[Visit] | None) -> int | NoStream:
        """The address of the STE of ``sid``."""
        if not 0 <= sid < self._size:
            return NoStream(C_BAD_STREAMID)
        split = self._split
        if split is None:
            return self._base + STE_BYTES * sid
        index = sid >> split
        descriptor = l1_cache.get(index)
        if descriptor is None:
            address = self._base + 8 * index
            if address + 8 > self._memory.size:
                return NoStream(F_STE_FETCH, address)
            descriptor = self._memory.words[address >> 3]
            if visits is not None:
                visits.append(Visit(L1STD, address, (descriptor,), slot=index))
            if self._config.caches_empty_l1std or L1Std.span.get(descriptor):
                l1_cache[index] = descriptor
        span = L1Std.span.get(descriptor)
        slot = sid & (1 << split) - 1
        if not 1 <= span <= split + 1 or slot >> span - 1:
            return NoStream(C_BAD_STREAMID)
        return (descriptor & L1Std.l2ptr.mask & -(STE_BYTES << span - 1)) + STE_BYTES * slot

    def _fetch(self, address: int, visits: list[Visit] | None = None) -> Stream | NoStream:
        if address + STE_BYTES > self._memory.size:
            return NoStream(F_STE_FETCH, address)
        ram = self._memory.words
        first = address >> 3
        if visits is not None:
            visits.append(Visit(STE, address, tuple(ram[first : first + 8])))
        return self._decode((ram[first], ram[first + 1], ram[first + 2], ram[first + 3]))
