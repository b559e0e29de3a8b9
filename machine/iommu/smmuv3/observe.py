# SPDX-License-Identifier: GPL-2.0-or-later
"""A translation as memory has it now, told step by step: no cache used or filled, no flag set, nothing recorded."""

from typing import Final

from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.contexts import substream
from machine.iommu.smmuv3.events import EVENT_NAMES, F_ADDR_SIZE, F_PERMISSION, F_TRANSLATION
from machine.iommu.smmuv3.explain import explain
from machine.iommu.smmuv3.faults import ABORTED_BY_STE, blocked_while_disabled
from machine.iommu.smmuv3.registers import CR0, SMMUEN, RegisterFile
from machine.iommu.smmuv3.ste import Stream
from machine.iommu.smmuv3.streams import NoStream, StreamTable, configuration_fault
from machine.iommu.smmuv3.translation import Caches, Translator
from machine.iommu.smmuv3.walk import ALLOW_READ, ALLOW_WRITE, Stop, Visit
from machine.iommu.smmuv3.walk1 import VA_BITS, in_range
from machine.iommu.unit import Counters, Walk
from machine.memory import PhysicalMemory


class Observer:
    """Explains translations of one unit."""

    def __init__(
        self, memory: PhysicalMemory, registers: RegisterFile, config: Smmuv3Config, streams: StreamTable
    ) -> None:
        self._words: Final = registers.words
        self._config: Final = config
        self._streams: Final = streams
        caches = Caches.forgetful(memory, config)
        self._translator: Final = Translator(memory, config, caches, Counters(), updates=False)

    def walk(self, sid: int, iova: int, write: bool, pasid: int | None) -> Walk:
        """The decision of ``Smmuv3Unit.translate``, explained."""
        visits: list[Visit] = []
        context = 0
        if not self._words[CR0] & SMMUEN:
            ending = _Ending(iova, blocked=blocked_while_disabled(self._words, self._config, iova))
        else:
            stream = self._streams.explain(sid, visits)
            number = configuration_fault(stream)
            if number is not None or isinstance(stream, NoStream):
                ending = _Ending(None, blocked=EVENT_NAMES[number] if number else ABORTED_BY_STE)
            else:
                ending = self._translate(sid, stream, iova, write, pasid, visits)
                context = ending.mair
        steps = tuple(explain(visit, self._config, context) for visit in visits)
        if ending.blocked is not None:
            return Walk(sid, iova, write, steps, None, None, *ending.rights, ending.blocked)
        return Walk(sid, iova, write, steps, ending.maddr, ending.size, *ending.rights, None)

    def _translate(
        self, sid: int, stream: Stream, iova: int, write: bool, ssid: int | None, visits: list[Visit]
    ) -> "_Ending":
        index = substream(stream.stage1, ssid)
        if isinstance(index, Stop):
            return _Ending(None, blocked=EVENT_NAMES[index.number])
        need = ALLOW_WRITE if write else stream.need_read
        if index is None:
            if iova >> self._config.oas:
                return _Ending(None, blocked=EVENT_NAMES[F_ADDR_SIZE])
            if stream.stage2 is None:
                return _Ending(iova)
            second = self._translator.fill2(stream.stage2, iova, write, visits)
            if isinstance(second, Stop):
                return _Ending(None, blocked=EVENT_NAMES[second.number])
            delta, allowed, order = second
            rights = (bool(allowed & ALLOW_READ), bool(allowed & ALLOW_WRITE))
            blocked = None if allowed & need else EVENT_NAMES[F_PERMISSION]
            return _Ending(iova + delta, 4096 << order, rights, blocked)
        context = self._translator.context(sid, stream, index, visits)
        if isinstance(context, Stop):
            return _Ending(None, blocked=EVENT_NAMES[context.number])
        half = context.halves[iova >> 55 & 1]
        if half is None or not (half.disabled or in_range(half, iova)):
            return _Ending(None, blocked=EVENT_NAMES[F_TRANSLATION], mair=context.mair)
        va = iova & VA_BITS
        found = self._translator.find(stream, context, half, va, write, visits)
        if isinstance(found, Stop):
            return _Ending(None, blocked=EVENT_NAMES[found.number], mair=context.mair)
        _, allowed1, allowed2, _ = found.entry
        reads, writes = allowed1 & stream.need_read1, allowed1 & stream.need_write1
        rights = (bool(reads and allowed2 & stream.need_read), bool(writes and allowed2 & ALLOW_WRITE))
        outcome = self._translator.judge(stream, context, found.entry, va, write)
        if isinstance(outcome, Stop):
            return _Ending(None, None, rights, EVENT_NAMES[outcome.number], context.mair)
        return _Ending(outcome, 4096 << found.order, rights, None, context.mair)


class _Ending:
    """Where a walk leads, in the terms of :class:`Walk`."""

    def __init__(
        self,
        maddr: int | None,
        size: int | None = None,
        rights: tuple[bool, bool] | None = None,
        blocked: str | None = None,
        mair: int = 0,
    ) -> None:
        self.maddr: Final = maddr
        self.size: Final = size
        self.rights: Final = rights if rights is not None else (blocked is None, blocked is None)
        self.blocked: Final = blocked
        self.mair: Final = mair
