# SPDX-License-Identifier: GPL-2.0-or-later
"""Both stages put together: substream, context, cached translation, walk, permission (IHI 0070, 3.3.3).

A :class:`Translator` works on the caches that it is given.  One with live caches serves transactions; another with
caches that keep nothing and no leave to write memory explains what memory says.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from machine.iommu.replacement import Eager, Replacement
from machine.iommu.smmuv3.cd import Context, Half
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.contexts import ContextTable, substream
from machine.iommu.smmuv3.events import (
    C_BAD_CD,
    CLASS_CD,
    CLASS_IN,
    CLASS_TT,
    F_ADDR_SIZE,
    F_PERMISSION,
    F_TLB_CONFLICT,
    F_TRANSLATION,
    TT_READ,
)
from machine.iommu.smmuv3.ste import Stream
from machine.iommu.smmuv3.tlb import (
    CONFLICT,
    CONFLICT_SHIFT,
    Stage1Entry,
    Stage1Tag,
    Stage1Tlb,
    Stage2Tlb,
    WalkCache,
)
from machine.iommu.smmuv3.walk import (
    AF,
    ALLOW_READ,
    ALLOW_WRITE,
    DEVICE,
    EVERYTHING,
    SET_ACCESSED,
    WRITABLE_CLEAN,
    Stage2,
    Stop,
    Visit,
    walk_stage2,
)
from machine.iommu.smmuv3.walk1 import NOT_GLOBAL, READ_ONLY, VA_BITS, Leaf1, in_range, permissions1, walk_stage1
from machine.iommu.unit import Counters
from machine.memory import PhysicalMemory

_S2AP_WRITE: Final = 1 << 7
_NT: Final = 1 << 16
"""nT of a block: with BBML 1 or 2 it is not cached in a way that could conflict; here not at all."""
_BAD_CD: Final = Stop(C_BAD_CD, stage2=False)
_BEYOND_IAS: Final = Stop(F_ADDR_SIZE, stage2=False)


class Caches(NamedTuple):
    """Every structure that remembers a translation or its configuration."""

    contexts: ContextTable
    tlb1: Stage1Tlb
    tables1: "WalkCache[Stage1Tag, tuple[int, int]]"
    tlb2: Stage2Tlb
    tables2: "WalkCache[int, int]"

    @classmethod
    def make(
        cls, memory: PhysicalMemory, config: Smmuv3Config, capacity: int | None, replacement: Replacement | None
    ) -> "Caches":
        """Empty ones; ``capacity`` overrules ``replacement`` for translations."""
        return cls(
            ContextTable(memory, config, replacement),
            Stage1Tlb(capacity, replacement),
            WalkCache(capacity, replacement),
            Stage2Tlb(capacity, replacement),
            WalkCache(capacity, replacement),
        )

    @classmethod
    def forgetful(cls, memory: PhysicalMemory, config: Smmuv3Config) -> "Caches":
        """Caches that keep nothing."""
        return cls.make(memory, config, None, Eager())

    def save(self) -> tuple[object, ...]:
        return (
            self.contexts.save(),
            self.tlb1.save(),
            self.tables1.save(),
            self.tlb2.save(),
            self.tables2.save(),
        )

    def restore(self, state: tuple[object, ...]) -> None:
        self.contexts.restore(state[0])
        self.tlb1.restore(state[1])
        self.tables1.restore(state[2])
        self.tlb2.restore(state[3])
        self.tables2.restore(state[4])


class Found(NamedTuple):
    """A translation of one page, before permission is judged."""

    entry: Stage1Entry
    order: int
    """log2 of the 4 KiB pages that it covers."""


class Translator:
    """Finds translations in ``caches`` or in memory.  ``updates``: it may set flags in descriptors (HTTU)."""

    def __init__(
        self,
        memory: PhysicalMemory,
        config: Smmuv3Config,
        caches: Caches,
        counters: Counters,
        updates: bool = True,
    ) -> None:
        self._memory: Final = memory
        self._words: Final = memory.words
        self._limit: Final = memory.size >> 3
        self._config: Final = config
        self._bbml: Final = config.bbml
        self._contexts, self._tlb1, self._tables1, self._tlb2, self._tables2 = caches
        self._counters: Final = counters
        self._updates: Final = updates

    # -- both stages ----------------------------------------------------------------------------------------

    def translate(self, sid: int, stream: Stream, iova: int, write: bool, ssid: int | None) -> int | Stop:
        """The machine address, or the fault; for streams with stage 1 and transactions with a SubstreamID."""
        index = substream(stream.stage1, ssid)
        if isinstance(index, Stop):
            return index
        if index is None:
            return self._bypass_stage1(stream, iova, write)
        context = self.context(sid, stream, index)
        if isinstance(context, Stop):
            return context
        entry = self.entry(stream, context, iova, write)
        if isinstance(entry, Stop):
            return entry
        return self.judge(stream, context, entry, iova & VA_BITS, write)

    def context(self, sid: int, stream: Stream, index: int, visits: list[Visit] | None = None) -> Context | Stop:
        """The context at ``index`` of a stream with stage 1."""
        known = self._contexts.cached.get((sid, index)) if visits is None else None
        if known is not None:
            return _BAD_CD if known.illegal else known
        stage1 = stream.stage1
        assert stage1 is not None
        locate = self._locator(stream.stage2, CLASS_CD, visits)
        if visits is None:
            context = self._contexts.fetch(sid, stage1, index, locate)
        else:
            context = self._contexts.explain(sid, stage1, index, locate, visits)
        return _BAD_CD if isinstance(context, Context) and context.illegal else context

    def judge(self, stream: Stream, context: Context, entry: Stage1Entry, va: int, write: bool) -> int | Stop:
        """Permission at stage 1, then at stage 2."""
        delta, allowed1, allowed2, delta1 = entry
        if not allowed1 & (stream.need_write1 if write else stream.need_read1):
            return Stop(F_PERMISSION, stage2=False, records=context.records, stalls=context.stalls)
        if not allowed2 & (ALLOW_WRITE if write else stream.need_read):
            return Stop(F_PERMISSION, ipa=va + delta1)
        return va + delta

    def entry(self, stream: Stream, context: Context, iova: int, write: bool) -> Stage1Entry | Stop:
        """The cached translation, or a fresh one."""
        half = context.halves[iova >> 55 & 1]
        if half is None or not (half.disabled or in_range(half, iova)):
            return Stop(F_TRANSLATION, stage2=False, records=context.records, stalls=context.stalls)
        va = iova & VA_BITS
        page = va >> 12
        tag = context.tag
        entry = self._tlb1.lookup(tag, page)
        if entry is None and context.global_tag is not None:
            tag = context.global_tag
            entry = self._tlb1.lookup(tag, page)
        if entry is not None:
            self._counters.iotlb_hits += 1
            if entry[1] & CONFLICT:
                larger = self._tlb1.larger(tag, page)
                return self._conflict(entry, larger, Stop(F_TLB_CONFLICT, stage2=False))  # type: ignore[return-value]
            allowed1, allowed2 = entry[1], entry[2]
            if not write or not (
                (allowed1 & WRITABLE_CLEAN and not allowed1 & stream.need_write1)
                or (allowed2 & WRITABLE_CLEAN and not allowed2 & ALLOW_WRITE)
            ):
                return entry
            self._tlb1.invalidate_pages(tag, page, 1)
        else:
            self._counters.iotlb_misses += 1
        found = self.find(stream, context, half, va, write)
        return found if isinstance(found, Stop) else found.entry

    def order1(self, context: Context, page: int) -> int:
        """log2 of the pages that the cached translation of ``page`` covers, 0 if nothing is cached."""
        for tag in (context.tag, context.global_tag):
            order = self._tlb1.order(tag, page)
            if order is not None:
                return order
        return 0

    def find(
        self,
        stream: Stream,
        context: Context,
        half: Half,
        va: int,
        write: bool,
        visits: list[Visit] | None = None,
    ) -> Found | Stop:
        """Walk both stages, set flags, cache the result; stage 2 is asked only for what stage 1 allows (3.9.1.2)."""
        stage2 = stream.stage2
        known = self._tables1.known(context.tag)
        locate = None if stage2 is None else self._locator(stage2, CLASS_TT, visits)
        leaf = walk_stage1(self._words, self._limit, context, half, va, locate, known, visits)
        if isinstance(leaf, Stop):
            return leaf
        need = stream.need_write1 if write else stream.need_read1
        descriptor, allowed1 = leaf.descriptor, leaf.allowed
        if write and allowed1 & WRITABLE_CLEAN and not allowed1 & need:
            dirty = permissions1(descriptor & ~READ_ONLY, leaf.inherited, context)
            if dirty & need:
                descriptor &= ~READ_ONLY
                allowed1 = dirty | allowed1 & SET_ACCESSED
        if not allowed1 & need and (stage2 is not None or allowed1 & SET_ACCESSED):
            return Stop(F_PERMISSION, stage2=False, records=context.records, stalls=context.stalls)
        if allowed1 & SET_ACCESSED:
            descriptor |= AF
            allowed1 &= ~SET_ACCESSED
        if descriptor != leaf.descriptor:
            failed = self._store(stage2, leaf, descriptor)
            if failed is not None:
                return failed
        order = leaf.order
        size = 4096 << order
        ipa = leaf.base | va & size - 1
        maddr, allowed2 = ipa, EVERYTHING
        if stage2 is not None:
            second = self.stage2(stage2, ipa, ALLOW_WRITE if write else stream.need_read, CLASS_IN, visits)
            if isinstance(second, Stop):
                return second
            maddr, allowed2, order2 = second
            order = min(order, order2)
        entry = (maddr - va, allowed1, allowed2, ipa - va)
        if not (self._bbml and leaf.order and descriptor & _NT):
            tag = context.tag
            if not descriptor & NOT_GLOBAL and context.global_tag is not None:
                tag = context.global_tag
            if order and self._bbml < 2:
                for page, small, old in self._tlb1.covered(tag, va >> 12, order):
                    if not old[1] & CONFLICT:
                        marked = (old[0], old[1] << CONFLICT_SHIFT | CONFLICT, old[2], old[3])
                        self._tlb1.replace(tag, page, small, marked)
            self._tlb1.insert(tag, va >> 12, order, entry)
        return Found(entry, order)

    def _store(self, stage2: Stage2 | None, leaf: Leaf1, descriptor: int) -> Stop | None:
        """A hardware update of a stage 1 descriptor; stage 2 must let it be written (3.13.5)."""
        where = leaf.where
        if stage2 is not None:
            second = self.stage2(stage2, where, ALLOW_WRITE, CLASS_TT)
            if isinstance(second, Stop):
                return second
            where = second[0]
        if self._updates:
            self._memory.write64(where, descriptor)
        return None

    # -- stage 2 --------------------------------------------------------------------------------------------

    def stage2(
        self, stage2: Stage2, ipa: int, need: int, details: int, visits: list[Visit] | None = None
    ) -> tuple[int, int, int] | Stop:
        """Translate ``ipa``: machine address, rights, order of the page; ``details`` is the CLASS of a fault.

        ``need``: the ``ALLOW_*`` bit that the access wants.
        """
        write = need == ALLOW_WRITE
        entry = self._tlb2.lookup(stage2.vmid, ipa >> 12)
        order = 0
        if entry is not None and entry[1] & CONFLICT:
            entry = self.conflict2(stage2, ipa)  # type: ignore[assignment]
        if entry is None or (write and entry[1] & WRITABLE_CLEAN):
            self._tlb2.invalidate_pages(stage2.vmid, ipa >> 12, 1)
            found = self.fill2(stage2, ipa, write, visits)
            if isinstance(found, Stop):
                return found._replace(details=details, ipa=ipa)
            delta, allowed, order = found
        elif isinstance(entry, Stop):
            return entry._replace(ipa=ipa)
        else:
            delta, allowed = entry
            order = self._tlb2.order(stage2.vmid, ipa >> 12) or 0
        if not allowed & need or (allowed & DEVICE and details != CLASS_IN and stage2.controls.protects_walks):
            if details == CLASS_TT and not write:
                details |= TT_READ
            return Stop(F_PERMISSION, details=details, ipa=ipa)
        return ipa + delta, allowed, order

    def fill2(
        self, stage2: Stage2, ipa: int, write: bool, visits: list[Visit] | None = None
    ) -> tuple[int, int, int] | Stop:
        """Walk stage 2 and cache the result: output minus input address, rights, order of the page."""
        vmid = stage2.vmid
        found = walk_stage2(self._words, self._limit, stage2, ipa, self._tables2.known(vmid), visits)
        if isinstance(found, Stop):
            return found
        base, order, allowed, at = found
        if allowed & (SET_ACCESSED | WRITABLE_CLEAN):
            allowed = self._mark2(at, allowed, write)
        delta = base - (ipa & -(4096 << order))
        if order and self._bbml and self._words[at] & _NT:
            return delta, allowed, order
        if order and self._bbml < 2:
            for page, small, old in self._tlb2.covered(vmid, ipa >> 12, order):
                if not old[1] & CONFLICT:
                    self._tlb2.replace(vmid, page, small, (old[0], old[1] << CONFLICT_SHIFT | CONFLICT))
        self._tlb2.insert(vmid, ipa >> 12, order, (delta, allowed))
        return delta, allowed, order

    def conflict2(self, stage2: Stage2, ipa: int) -> tuple[int, int] | Stop:
        """What the conflicting entries for ``ipa`` give."""
        page = ipa >> 12
        entry = self._tlb2.lookup(stage2.vmid, page)
        assert entry is not None
        larger = self._tlb2.larger(stage2.vmid, page)
        return self._conflict(entry, larger, Stop(F_TLB_CONFLICT, ipa=ipa))  # type: ignore[return-value]

    def _conflict(self, entry: tuple[int, ...], larger: tuple[int, ...] | None, fault: Stop) -> tuple[int, ...] | Stop:
        """Which of two entries counts (3.21.1); the larger one may have been invalidated since."""
        if larger is not None:
            if self._config.tlb_conflict == "fault":
                return fault
            if self._config.tlb_conflict == "large":
                return larger
        return (entry[0], entry[1] >> CONFLICT_SHIFT, *entry[2:])

    def _mark2(self, at: int, allowed: int, write: bool) -> int:
        """Set AF and dirty state of the descriptor that is word ``at`` of RAM; what it allows then."""
        descriptor = marked = self._words[at]
        if allowed & SET_ACCESSED:
            marked |= AF
            allowed &= ~SET_ACCESSED
        if write and allowed & WRITABLE_CLEAN:
            marked |= _S2AP_WRITE
            allowed = allowed & ~WRITABLE_CLEAN | ALLOW_WRITE
        if marked != descriptor and self._updates:
            self._memory.write64(at << 3, marked)
        return allowed

    def _locator(self, stage2: Stage2 | None, details: int, visits: list[Visit] | None) -> Callable[[int], int | Stop]:
        """The machine address behind a pointer of stage 1."""
        if stage2 is None:
            return _same

        def locate(ipa: int) -> int | Stop:
            second = self.stage2(stage2, ipa, ALLOW_READ, details, visits)
            return second if isinstance(second, Stop) else second[0]

        return locate

    def _bypass_stage1(self, stream: Stream, iova: int, write: bool) -> int | Stop:
        """S1DSS: as though stage 1 were not configured."""
        if iova >> self._config.oas:
            return _BEYOND_IAS
        if stream.stage2 is None:
            return iova
        second = self.stage2(stream.stage2, iova, ALLOW_WRITE if write else stream.need_read, CLASS_IN)
        return second if isinstance(second, Stop) else second[0]


def _same(address: int) -> int | Stop:
    return address
