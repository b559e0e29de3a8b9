# SPDX-License-Identifier: GPL-2.0-or-later
"""Stream table and configuration cache: from a StreamID to what its transactions undergo (IHI 0070, 3.3, 5.1, 5.2).

Whatever was fetched is cached, invalid entries of both levels included, until a CMD_CFGI command names it; only a
fetch that aborted is not.
"""

from functools import lru_cache, partial
from typing import Final, NamedTuple, cast

from base.bits import Layout, bits
from machine.iommu.replacement import Replacement
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.events import C_BAD_STE, C_BAD_STREAMID, F_STE_FETCH
from machine.iommu.smmuv3.registers import CR2, E2H, STRTAB_BASE, STRTAB_BASE_CFG, RegisterFile, StrtabBaseCfg
from machine.iommu.smmuv3.ste import CONFIG_ABORT, CONFIG_ILLEGAL, Stream, decode_ste
from machine.iommu.smmuv3.tlb import make_room
from machine.iommu.smmuv3.walk import Visit
from machine.memory import PhysicalMemory


class L1Std(Layout):
    """Level 1 stream table descriptor (5.1)."""

    l2ptr = bits(55, 6)
    span = bits(4, 0, "0: invalid, n: 2^(n-1) STEs")


L1STD: Final = "L1STD"
STE: Final = "STE"
STE_BYTES: Final = 64
ALL_STREAMS: Final = 32
"""log2 of the number of StreamIDs that there can be."""


class NoStream(NamedTuple):
    """Why a StreamID led to no STE: the event, and the address of the structure for F_STE_FETCH."""

    number: int
    fetch: int = 0


def configuration_fault(stream: Stream | NoStream) -> int | None:
    """The event number of a configuration that stops every transaction: 0 for a silent one, ``None`` for none."""
    if isinstance(stream, NoStream):
        return stream.number
    if stream.config == CONFIG_ILLEGAL:
        return C_BAD_STE
    return 0 if stream.config == CONFIG_ABORT else None


class StreamTable:
    """The stream table in memory and what is cached of it.

    ``translating`` maps the StreamIDs whose cached STE enables stage 2 alone to (VMID, need_read): the one look-up
    that a translation which hits needs.  ``replacement`` decides what stays cached; ``None``: everything.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        registers: RegisterFile,
        config: Smmuv3Config,
        replacement: Replacement | None = None,
    ) -> None:
        self._memory: Final = memory
        self._registers: Final = registers
        self._config: Final = config
        self._replacement: Final = replacement
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
        if self._replacement is None or make_room(self._replacement, self.cached, self.translating):
            self.cached[sid] = stream
            if stream.stage2 is not None and stream.stage1 is None:
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
        cached, translating, l1 = cast("tuple[dict[int, Stream], dict[int, tuple[int, int]], dict[int, int]]", state)
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
            cacheable = self._config.caches_empty_l1std or L1Std.span.get(descriptor)
            if cacheable and (self._replacement is None or (visits is None and make_room(self._replacement, l1_cache))):
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
        e2h = bool(self._registers.words[CR2] & E2H)
        return self._decode((ram[first], ram[first + 1], ram[first + 2], ram[first + 3]), e2h=e2h)
