# SPDX-License-Identifier: GPL-2.0-or-later
"""The assembled VT-d unit: registers in front, caches behind, and the decision that every DMA request meets.

Legacy mode: root table, context tables, second-level tables.  The steps are those of the VT-d specification's
chapter 3; each chapter has its own file beside this one.
"""

from collections import defaultdict
from typing import Final, NamedTuple

from machine.iommu.ats import Completion, InvalidationPort
from machine.iommu.iotlb import IoTlb
from machine.iommu.replacement import Replacement
from machine.iommu.unit import Counters, Fault, Walk
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.device_tlb import DeviceTlbInvalidation, DeviceTlbRequests
from machine.iommu.vtd.explain import Explainer
from machine.iommu.vtd.explain_scalable import ScalableExplainer
from machine.iommu.vtd.faults import EventMessage, FaultLog
from machine.iommu.vtd.invalidation import DrainingInvalidation, Invalidation, RegisterInvalidation
from machine.iommu.vtd.legacy import LegacyResolver
from machine.iommu.vtd.queue import InvalidationQueue
from machine.iommu.vtd.reasons import (
    BEYOND_WIDTH,
    FAULT_NAMES,
    INTERRUPT_ADDRESS,
    NO_READ,
    NO_WRITE,
    SM_LEGACY_WITH_PASID,
    SM_TABLE_MODE,
    UNQUALIFIED,
)
from machine.iommu.vtd.registers import (
    DOORBELL_MEGABYTE,
    GCMD,
    GSTS,
    IECTL,
    IQT,
    IQT_MASK,
    QIE,
    REGISTER_SIZE,
    RTADDR,
    SRTP,
    TE,
    WBF,
    RegisterFile,
)
from machine.iommu.vtd.scalable import ScalableMode
from machine.iommu.vtd.scalable_invalidation import ScalableInvalidation
from machine.iommu.vtd.scalable_tables import ScalableTables
from machine.iommu.vtd.tables import Context, ContextCache, ContextTables
from machine.iommu.vtd.visibility import view_of
from machine.iommu.vtd.walk import ALLOWED_SHIFT, REASON_SHIFT, R, SecondLevel, W
from machine.mmio import SystemBus

_IQT: Final = IQT >> 2
_GSTS: Final = GSTS >> 2


LEGACY: Final = 0
SCALABLE: Final = 1
"""RTADDR.TTM."""


class VtdState(NamedTuple):
    """What :meth:`VtdUnit.save` gives."""

    dwords: tuple[int, ...]
    root_table: int
    contexts: dict[int, Context]
    iotlb: object
    structures: object
    next_record: int
    queue: tuple[bool, int, int, bool, int | None]
    replacement: object
    view: object
    scalable: object


class VtdUnit:
    """A remapping hardware unit.  Map it on the bus with ``bus.map(base, unit.register_size, unit)``.

    ``replacement`` decides how long every cache remembers; ``None`` keeps stale entries longest.
    ``iotlb_capacity`` overrules it for the IOTLB: the oldest of that many entries makes way.
    """

    def __init__(
        self,
        name: str,
        bus: SystemBus,
        config: VtdConfig | None = None,
        iotlb_capacity: int | None = None,
        replacement: Replacement | None = None,
    ) -> None:
        self.name: Final = name
        self.register_size: Final = REGISTER_SIZE
        if config is None:
            config = VtdConfig()
        self.config: Final = config
        self.counters: Final = Counters(commands=defaultdict(int))
        self.registers: Final = RegisterFile(config)
        self.iotlb: Final[IoTlb[int]] = IoTlb(iotlb_capacity, replacement)
        self._replacement: Final = replacement
        self.view: Final = view_of(config, bus)
        self.tables: Final = ContextTables(config, self.view.words)
        self.contexts: Final = ContextCache(replacement)
        self.second_level: Final = SecondLevel(config, self.view.words, self.iotlb, replacement)
        self.scalable: Final = ScalableMode(
            config, bus.memory, self.view.words, self.second_level, self.counters, replacement
        )
        self.faults: Final = FaultLog(config, self.registers, bus)
        self.invalidation: Final = self._make_invalidation()
        RegisterInvalidation(config, self.registers, self.invalidation)
        self.queue: Final = InvalidationQueue(
            config,
            self.registers,
            bus.memory,
            self.invalidation,
            self.faults,
            EventMessage(self.registers, bus, IECTL),
            self.counters,
        )
        self._explainer: Final = Explainer(bus.memory, ContextTables(config, bus.memory.words), self.second_level)
        first = self.scalable.first
        self._scalable_explainer: Final = ScalableExplainer(
            bus.memory,
            ScalableTables(config, bus.memory.words),
            self.second_level,
            first.leaf_reserved,
            first.table_reserved,
        )
        self._lookup: Final = self.iotlb.lookup
        self._cached_contexts: Final = self.contexts.entries
        if isinstance(self.invalidation, ScalableInvalidation):
            self.invalidation.register(self.queue)
        self.device_tlb: Final = DeviceTlbRequests(self._fault)
        self.device_tlb_invalidation: Final = DeviceTlbInvalidation(config, self.queue, self.counters.commands)
        self._legacy_resolver: Final = LegacyResolver(self._context_of, self.second_level)
        self._legacy = False
        """Translation is enabled, in legacy mode."""
        self._scalable = False
        self._table_mode = LEGACY
        """RTADDR.TTM as SRTP latched it."""
        self.registers.on_write[GCMD >> 2] = self._command

    def _make_invalidation(self) -> Invalidation:
        parts = (self.config, self.contexts, self.second_level, self.counters)
        if self.config.scalable:
            return ScalableInvalidation(*parts, self.scalable)
        return DrainingInvalidation(*parts, self.view.drain) if self.config.write_buffer_flush else Invalidation(*parts)

    # Registers.

    def read(self, offset: int, size: int) -> int:
        return self.registers.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == IQT and size >= 4 and self.config.queued_invalidation:
            # The one register that is written for every map and unmap.
            self.registers.dwords[_IQT] = value & IQT_MASK
            self.queue.run(0)
            return
        self.registers.write(offset, size, value)

    def _command(self, value: int) -> None:
        """GCMD (11.4.4.1): one-shot commands act when written 1, the others are what was written last."""
        dwords = self.registers.dwords
        dwords[GCMD >> 2] = 0
        if value & WBF and self.config.write_buffer_flush:
            self.counters.commands["write-buffer flush"] += 1
            self.view.drain()
        if value & SRTP:
            root = self.registers.get64(RTADDR)
            self.tables.root_table = self.scalable.tables.root_table = root & -4096
            self._table_mode = root >> 10 & 3
            dwords[_GSTS] |= SRTP
            if self.config.set_root_invalidates:
                self.invalidation.all_entries()
                self.invalidation.all_translations()
        dwords[_GSTS] = dwords[_GSTS] & ~TE | value & TE
        self._choose_mode()
        if (value ^ dwords[_GSTS]) & QIE and self.config.queued_invalidation:
            dwords[_GSTS] ^= QIE
            if value & QIE:
                self.queue.enable()
            else:
                self.queue.disable()

    def _choose_mode(self) -> None:
        """TE or the table mode may have changed."""
        translating = bool(self.registers.dwords[_GSTS] & TE)
        self._legacy = translating and self._table_mode == LEGACY
        self._scalable = translating and self._table_mode == SCALABLE
        self.device_tlb.resolver = None
        if self.config.device_tlb and self._legacy:
            self.device_tlb.resolver = self._legacy_resolver
        elif self.config.device_tlb and self._scalable:
            self.device_tlb.resolver = self.scalable

    # Translation.

    def translate(self, sid: int, iova: int, write: bool, pasid: int | None = None) -> int | Fault:
        if pasid is not None or not self._legacy:
            return self._translate_otherwise(sid, iova, write, pasid)
        if iova >> 20 == DOORBELL_MEGABYTE:
            return self._interrupt_request(sid, iova, write)
        counters = self.counters
        context = self._cached_contexts.get(sid)
        if context is None:
            context = self._fetch_context(sid)
        else:
            counters.config_hits += 1
        need = W if write else R
        if iova <= context.limit:
            entry = self._lookup(context.did, iova >> 12)
            if entry is None:
                counters.iotlb_misses += 1
                result = self.second_level.translate(context.did, context.root, context.shift, iova, need)
                if result >= 0:
                    return result
                code = -result
            else:
                counters.iotlb_hits += 1
                if entry & need:
                    return iova + (entry & -4096)
                if entry >> ALLOWED_SHIFT & need:
                    code = entry >> REASON_SHIFT & 0x7F
                else:
                    code = NO_WRITE if write else NO_READ
        elif iova <= context.through:
            return iova
        else:
            code = context.code or BEYOND_WIDTH
        return self._fault(sid, iova, write, code, context.fpd)

    def _translate_otherwise(self, sid: int, iova: int, write: bool, pasid: int | None) -> int | Fault:
        """Translation is off, or in another mode, or the request has a PASID."""
        if not self.registers.dwords[_GSTS] & TE:
            return iova
        if not self._scalable:
            code = SM_LEGACY_WITH_PASID if self._table_mode == LEGACY else SM_TABLE_MODE
            return self._fault(sid, iova, write, code, False, pasid)
        if pasid is None and iova >> 20 == DOORBELL_MEGABYTE:
            return self._interrupt_request(sid, iova, write)
        scalable = self.scalable
        granted = scalable.admit(sid, pasid, False)
        result = -granted.code or scalable.translate(granted, iova, write)
        if result >= 0:
            return result
        return self._fault(sid, iova, write, -result, granted.fpd, pasid)

    def connect_device_tlb(self, sid: int, port: InvalidationPort) -> None:
        self.device_tlb_invalidation.ports[sid] = port

    def translation_request(self, sid: int, iova: int, no_write: bool = False, pasid: int | None = None) -> Completion:
        return self.device_tlb.translation(sid, iova, no_write, pasid)

    def translated_request(self, sid: int, maddr: int, write: bool) -> int | Fault:
        return self.device_tlb.translated(sid, maddr, write)

    def walk(self, sid: int, iova: int, write: bool = False, pasid: int | None = None) -> Walk:
        if not self.registers.dwords[_GSTS] & TE:
            return Walk(sid, iova, write, (), iova, None, True, True, None)
        if not self._scalable and (pasid is not None or not self._legacy):
            code = SM_LEGACY_WITH_PASID if self._legacy else SM_TABLE_MODE
            return Walk(sid, iova, write, (), None, None, False, False, FAULT_NAMES[code])
        if pasid is None and iova >> 20 == DOORBELL_MEGABYTE:
            passes = write and not iova & 3
            blocked = None if passes else FAULT_NAMES[INTERRUPT_ADDRESS]
            return Walk(sid, iova, write, (), iova if passes else None, None, False, passes, blocked)
        if self._scalable:
            return self._scalable_explainer.walk(self.tables.root_table, sid, iova, write, pasid)
        return self._explainer.walk(self.tables.root_table, sid, iova, write)

    def _interrupt_request(self, sid: int, iova: int, write: bool) -> int | Fault:
        """3.14: an aligned write there is a message interrupt and is not remapped; nothing else is allowed."""
        if write and not iova & 3:
            return iova
        return self._fault(sid, iova, write, INTERRUPT_ADDRESS, False)

    def _context_of(self, sid: int) -> Context:
        return self._cached_contexts.get(sid) or self._fetch_context(sid)

    def _fetch_context(self, sid: int) -> Context:
        self.counters.config_misses += 1
        context = self.tables.fetch(sid)
        if not context.code or self.config.caching_mode:
            self.contexts.keep(sid, context)
        return context

    def _fault(
        self, sid: int, iova: int, write: bool, code: int, fpd: bool, pasid: int | None = None, address_type: int = 0
    ) -> Fault:
        self.counters.faults += 1
        record: tuple[int, ...] = ()
        if not fpd or code in UNQUALIFIED:
            more = address_type << 60 | (0 if pasid is None else pasid << 40 | 1 << 31)
            record = self.faults.record(sid, iova, write, code, more)
        return Fault(self.name, sid, iova, write, code, FAULT_NAMES[code], record, pasid)

    # Snapshots.

    def save(self) -> VtdState:
        queue = self.queue
        return VtdState(
            tuple(self.registers.dwords),
            self.tables.root_table | self._table_mode << 10,
            dict(self.contexts.entries),
            self.iotlb.save(),
            self.second_level.structures.save(),
            self.faults.next,
            (queue.enabled, queue.base, queue.size, queue.wide, queue.missing),
            None if self._replacement is None else self._replacement.save(),
            self.view.save(),
            self.scalable.save(),
        )

    def restore(self, state: VtdState) -> None:
        self.registers.dwords[:] = state.dwords
        self.tables.root_table = state.root_table & -4096
        self._table_mode = state.root_table >> 10 & 3
        self.contexts.entries.clear()
        self.contexts.entries.update(state.contexts)
        self.iotlb.restore(state.iotlb)
        self.second_level.structures.restore(state.structures)
        self.faults.next = state.next_record
        queue = self.queue
        queue.enabled, queue.base, queue.size, queue.wide, missing = state.queue
        queue.wait_for(missing)
        if self._replacement is not None:
            self._replacement.restore(state.replacement)
        self.view.restore(state.view)
        self.scalable.restore(state.scalable)
        self._choose_mode()
        self.counters.clear()
