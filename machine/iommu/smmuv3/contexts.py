# SPDX-License-Identifier: GPL-2.0-or-later
"""Context descriptors in memory and in the cache: from a SubstreamID to a stage 1 (IHI 0070, 5.2 S1Fmt, 5.3, 5.4).

Where stage 2 translates, the pointers are intermediate addresses and each fetch may fault there.  Whatever was
fetched is cached by (StreamID, index), invalid descriptors too, until a CMD_CFGI command names it.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final, cast

from base.bits import Layout, bit, bits
from machine.iommu.replacement import Replacement
from machine.iommu.smmuv3.cd import CD_BYTES, Context, decode_cd
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.events import C_BAD_SUBSTREAMID, F_CD_FETCH, F_STREAM_DISABLED
from machine.iommu.smmuv3.ste import DSS_BYPASS, DSS_SUBSTREAM0, DSS_TERMINATE, LEAF_4K, LINEAR, Stage1
from machine.iommu.smmuv3.tlb import make_room
from machine.iommu.smmuv3.walk import Stop, Visit
from machine.memory import PhysicalMemory

L1CD: Final = "L1CD"
CD: Final = "CD"

Locate = Callable[[int], "int | Stop"]
"""The machine address behind a pointer: the pointer itself, or what stage 2 makes of it."""


class L1Cd(Layout):
    """Level 1 context descriptor (5.3)."""

    l2ptr = bits(55, 12)
    v = bit(0)


_SPAN_4K: Final = 6
_SPAN_64K: Final = 10
"""log2 of the CDs in a second-level table."""
_NO_SUBSTREAM: Final = Stop(C_BAD_SUBSTREAMID, stage2=False)
_DISABLED: Final = Stop(F_STREAM_DISABLED, stage2=False)


def substream(stage1: Stage1 | None, ssid: int | None) -> int | Stop | None:
    """The index of the CD that serves ``ssid``; ``None``: stage 1 is bypassed (5.2, S1CDMax and S1DSS)."""
    if stage1 is None:
        return None if ssid is None else _NO_SUBSTREAM
    if not stage1.log2count:
        return 0 if ssid is None else _NO_SUBSTREAM
    if ssid is None:
        if stage1.default == DSS_TERMINATE:
            return _DISABLED
        return None if stage1.default == DSS_BYPASS else 0
    if ssid >> stage1.log2count:
        return _NO_SUBSTREAM
    return _DISABLED if not ssid and stage1.default == DSS_SUBSTREAM0 else ssid


class ContextTable:
    """The CDs of every stream and what is cached of them; keys begin with the StreamID."""

    def __init__(self, memory: PhysicalMemory, config: Smmuv3Config, replacement: Replacement | None = None) -> None:
        self._memory: Final = memory
        self._config: Final = config
        self._replacement: Final = replacement
        self.cached: Final[dict[tuple[int, int], Context]] = {}
        self._l1: Final[dict[tuple[int, int, int], int]] = {}
        """By StreamID, first index of the span, log2 of the span."""
        self._decode: Final = lru_cache(maxsize=4096)(partial(decode_cd, config=config))

    def __len__(self) -> int:
        return len(self.cached)

    def fetch(self, sid: int, stage1: Stage1, index: int, locate: Locate) -> Context | Stop:
        """The CD at ``index`` of the stream, which is not in ``cached``: fetched, and kept if it may be."""
        context = self._find(sid, stage1, index, locate, self._l1, None)
        if context.__class__ is Context and (self._replacement is None or make_room(self._replacement, self.cached)):
            self.cached[sid, index] = context
        return context

    def explain(self, sid: int, stage1: Stage1, index: int, locate: Locate, visits: list[Visit]) -> Context | Stop:
        """The CD as memory has it now, past every cache of CDs."""
        return self._find(sid, stage1, index, locate, {}, visits)

    def invalidate(self, sid: int, index: int, leaf: bool) -> None:
        """CMD_CFGI_CD: forget one CD and, unless ``leaf``, what led to it."""
        self.cached.pop((sid, index), None)
        if not leaf:
            for shift in (_SPAN_4K, _SPAN_64K):
                self._l1.pop((sid, index >> shift << shift, shift), None)

    def invalidate_streams(self, sid: int, log2count: int = 0) -> None:
        """CMD_CFGI_CD_ALL and CMD_CFGI_STE: forget all CDs of 2^``log2count`` streams, aligned."""
        group = sid >> log2count
        for key in [key for key in self.cached if key[0] >> log2count == group]:
            del self.cached[key]
        for span in [span for span in self._l1 if span[0] >> log2count == group]:
            del self._l1[span]

    def save(self) -> object:
        return (dict(self.cached), dict(self._l1))

    def restore(self, state: object) -> None:
        cached, l1 = cast("tuple[dict[tuple[int, int], Context], dict[tuple[int, int, int], int]]", state)
        self.cached.clear()
        self.cached.update(cached)
        self._l1.clear()
        self._l1.update(l1)

    def _find(
        self,
        sid: int,
        stage1: Stage1,
        index: int,
        locate: Locate,
        l1_cache: dict[tuple[int, int, int], int],
        visits: list[Visit] | None,
    ) -> Context | Stop:
        if stage1.form == LINEAR:
            return self._fetch(stage1, stage1.pointer + CD_BYTES * index, index, locate, visits)
        shift = _SPAN_4K if stage1.form == LEAF_4K else _SPAN_64K
        span = (sid, index >> shift << shift, shift)
        descriptor = l1_cache.get(span)
        if descriptor is None:
            slot = index >> shift
            where = locate(stage1.pointer + 8 * slot)
            if isinstance(where, Stop):
                return where
            if where + 8 > self._memory.size:
                return Stop(F_CD_FETCH, where, stage2=False)
            descriptor = self._memory.words[where >> 3]
            if visits is not None:
                visits.append(Visit(L1CD, where, (descriptor,), slot=slot))
            elif self._replacement is None or make_room(self._replacement, l1_cache):
                l1_cache[span] = descriptor
        table = descriptor & L1Cd.l2ptr.mask & -(CD_BYTES << shift)
        if not L1Cd.v.get(descriptor) or table >> self._config.oas:
            return Stop(C_BAD_SUBSTREAMID, stage2=False, ssid=index)
        return self._fetch(stage1, table + CD_BYTES * (index & (1 << shift) - 1), index, locate, visits)

    def _fetch(
        self, stage1: Stage1, address: int, index: int, locate: Locate, visits: list[Visit] | None
    ) -> Context | Stop:
        where = locate(address)
        if isinstance(where, Stop):
            return where
        if where + CD_BYTES > self._memory.size:
            return Stop(F_CD_FETCH, where, stage2=False)
        ram = self._memory.words
        first = where >> 3
        if visits is not None:
            visits.append(Visit(CD, where, tuple(ram[first : first + 8]), slot=index))
        return self._decode((ram[first], ram[first + 1], ram[first + 2], ram[first + 3]), stage1)
