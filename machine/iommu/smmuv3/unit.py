# SPDX-License-Identifier: GPL-2.0-or-later
"""The unit: registers in, translations and faults out (IHI 0070, 3.3 and 6).

:meth:`Smmuv3Unit.translate` is written flat because every emulated DMA passes here: a hit costs one look-up of
the StreamID and one of the page.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

from machine.iommu.ats import Completion, InvalidationPort
from machine.iommu.replacement import Replacement
from machine.iommu.smmuv3.ats import TranslationServices
from machine.iommu.smmuv3.commands import CommandQueue
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.events import CLASS_IN, F_ADDR_SIZE, F_PERMISSION, EventQueue
from machine.iommu.smmuv3.faults import ABORTED_BY_STE, FaultRecorder, blocked_while_disabled
from machine.iommu.smmuv3.interrupts import Interrupts, Wire
from machine.iommu.smmuv3.invalidation import Invalidations
from machine.iommu.smmuv3.observe import Observer
from machine.iommu.smmuv3.pri import PriQueue
from machine.iommu.smmuv3.registers import (
    CMDQ_BASE,
    CMDQ_CONS,
    CMDQ_PROD,
    CR0,
    CR0ACK,
    EVENTQ_BASE,
    EVENTQ_CONS,
    EVENTQ_PROD,
    GBPA,
    GBPA_UPDATE,
    GERRORN,
    IRQ_CTRL,
    IRQ_CTRLACK,
    PRIQ_BASE,
    PRIQ_CONS,
    PRIQ_PROD,
    REGISTER_SIZE,
    SMMUEN,
    STRTAB_BASE,
    STRTAB_BASE_CFG,
    Gbpa,
    RegisterFile,
)
from machine.iommu.smmuv3.stalls import Stalls
from machine.iommu.smmuv3.streams import NoStream, StreamTable, configuration_fault
from machine.iommu.smmuv3.tlb import CONFLICT, Stage1Tlb, Stage2Tlb, WalkCache
from machine.iommu.smmuv3.translation import Caches, Translator
from machine.iommu.smmuv3.walk import ALLOW_WRITE, WRITABLE_CLEAN, Stop
from machine.iommu.unit import Counters, Fault, Walk
from machine.mmio import SystemBus

_DENIED: Final = Stop(F_PERMISSION)
_BEYOND_IAS: Final = Stop(F_ADDR_SIZE, stage2=False)
_NOTHING: Final[dict[int, tuple[int, int]]] = {}


class Smmuv3Unit:
    """One SMMUv3: an ``IommuUnit``.

    ``replacement`` decides how long every cache remembers; ``None``: until a command makes it forget.
    ``iotlb_capacity`` overrules it for translations: the oldest of that many makes way.
    ``wire`` is called with the name of every wired interrupt output that pulses.
    """

    def __init__(
        self,
        name: str,
        bus: SystemBus,
        config: Smmuv3Config | None = None,
        iotlb_capacity: int | None = None,
        wire: Wire | None = None,
        replacement: Replacement | None = None,
    ) -> None:
        self.name = name
        self.register_size = REGISTER_SIZE
        executed: defaultdict[str, int] = defaultdict(int)
        self.counters = Counters(commands=executed)
        self.config: Final = config if config is not None else Smmuv3Config()
        self.registers: Final = RegisterFile(self.config)
        self._replacement: Final = replacement
        self._caches: Final = Caches.make(bus.memory, self.config, iotlb_capacity, replacement)
        self._tlb: Final = self._caches.tlb2
        self._translator: Final = Translator(bus.memory, self.config, self._caches, self.counters)
        self._streams: Final = StreamTable(bus.memory, self.registers, self.config, replacement)
        self._observer: Final = Observer(bus.memory, self.registers, self.config, self._streams)
        self._interrupts: Final = Interrupts(bus, self.registers, wire)
        self._events: Final = EventQueue(bus, self.registers, self._interrupts, self.config.eventq_log2)
        self.stalls: Final = Stalls(self.config, self._events)
        self.stalls.connect(self.translate)
        self._faults: Final = FaultRecorder(name, self.registers, self._events, self.stalls, self.counters)
        self._ats: Final = TranslationServices(
            self.config, self.registers, self._streams, self._translator, self._faults
        )
        self.pri: Final = PriQueue(bus, self.registers, self._interrupts, self.config)
        handlers = Invalidations(self.config, self.registers, self._streams, self._caches).commands()
        if self.config.stall_model != 1:
            handlers |= self.stalls.commands()
        if self.config.ats:
            handlers |= self._ats.commands()
        if self.config.pri:
            handlers |= self.pri.commands()
        self._commands: Final = CommandQueue(
            bus.memory, self.registers, self.config, self._interrupts, self._streams, handlers, executed
        )
        self._ats.answer_to(self._commands)
        self._translating = _NOTHING
        self._effects: Final = self._effect_table()

    def _effect_table(self) -> dict[int, Callable[[int], None]]:
        """What a write does beyond changing bits, by offset."""
        return {
            CR0: self._write_cr0,
            GBPA: self._write_gbpa,
            IRQ_CTRL: self._write_irq_ctrl,
            GERRORN: self._write_gerrorn,
            STRTAB_BASE: lambda _: self._streams.refresh(),
            STRTAB_BASE + 4: lambda _: self._streams.refresh(),
            STRTAB_BASE_CFG: lambda _: self._streams.refresh(),
            CMDQ_BASE: lambda _: self._commands.refresh(),
            CMDQ_BASE + 4: lambda _: self._commands.refresh(),
            CMDQ_PROD: self._commands.kick,
            CMDQ_CONS: lambda _: self._commands.trim(),
            EVENTQ_BASE: lambda _: self._events.refresh(),
            EVENTQ_BASE + 4: lambda _: self._events.refresh(),
            EVENTQ_PROD: lambda _: self._events.trim(),
            EVENTQ_CONS: self._write_eventq_cons,
            **self._pri_effects(),
        }

    def _pri_effects(self) -> dict[int, Callable[[int], None]]:
        if not self.config.pri:
            return {}
        return {
            PRIQ_BASE: lambda _: self.pri.refresh(),
            PRIQ_BASE + 4: lambda _: self.pri.refresh(),
            PRIQ_PROD: lambda _: self.pri.trim(),
            PRIQ_CONS: lambda _: self.pri.trim(),
        }

    @property
    def iotlb(self) -> Stage2Tlb:
        """The translations of stage 2 that are cached."""
        return self._tlb

    @property
    def combined_tlb(self) -> Stage1Tlb:
        """The translations of stage 1, or of both stages together, that are cached."""
        return self._caches.tlb1

    @property
    def walk_cache(self) -> WalkCache[int, int]:
        """The table descriptors of stage 2 that are cached."""
        return self._caches.tables2

    # -- registers ------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        return self.registers.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 4:
            if offset == CMDQ_PROD:
                self._commands.kick(value)
            else:
                self._write32(offset, value)
        elif size == 8 and not offset & 7:
            self._write32(offset, value & 0xFFFF_FFFF)
            self._write32(offset + 4, value >> 32)

    def _write32(self, offset: int, value: int) -> None:
        self.registers.write32(offset, value)
        effect = self._effects.get(offset)
        if effect is not None:
            effect(value)

    def _write_cr0(self, value: int) -> None:
        words = self.registers.words
        words[CR0ACK] = words[CR0]
        self._select()
        if not words[CR0] & SMMUEN:
            self.stalls.terminate()
        self._commands.run()
        self.stalls.settle()

    def _write_gerrorn(self, value: int) -> None:
        self._commands.run()
        self.stalls.settle()

    def _write_eventq_cons(self, value: int) -> None:
        self._events.trim()
        self.stalls.settle()

    def _write_gbpa(self, value: int) -> None:
        """6.3.14.1: a write without Update is ignored; with it, it takes effect at once."""
        if value & GBPA_UPDATE:
            writable = Gbpa.reserved() ^ 0xFFFF_FFFF ^ GBPA_UPDATE
            self.registers.words[GBPA] = value & writable

    def _write_irq_ctrl(self, value: int) -> None:
        words = self.registers.words
        words[IRQ_CTRLACK] = words[IRQ_CTRL]

    def _select(self) -> None:
        """Let hits through only while translation is enabled; the caches outlive SMMUEN (6.3.9.6)."""
        enabled = self.registers.words[CR0] & SMMUEN
        self._translating = self._streams.translating if enabled else _NOTHING

    # -- translation ----------------------------------------------------------------------------------------

    def translate(self, sid: int, iova: int, write: bool, pasid: int | None = None) -> int | Fault:
        """``pasid`` is the SubstreamID, ``None`` if the transaction has none."""
        stream = self._translating.get(sid)
        if stream is not None and pasid is None:
            vmid, need_read = stream
            entry = self._tlb.lookup(vmid, iova >> 12)
            if entry is not None:
                delta, allowed = entry
                if allowed & (ALLOW_WRITE if write else need_read):
                    counters = self.counters
                    counters.config_hits += 1
                    counters.iotlb_hits += 1
                    return iova + delta
        return self._translate_slowly(sid, iova, write, pasid)

    def _translate_slowly(self, sid: int, iova: int, write: bool, pasid: int | None) -> int | Fault:
        """3.3.3: enable, configuration, address size, cached translation, walk, permission."""
        if not self.registers.words[CR0] & SMMUEN:
            blocked = blocked_while_disabled(self.registers.words, self.config, iova)
            return self._faults.silent(sid, iova, write, pasid, blocked) if blocked else iova
        counters = self.counters
        if sid in self._streams.cached:
            counters.config_hits += 1
        else:
            counters.config_misses += 1
        stream = self._streams.lookup(sid)
        number = configuration_fault(stream)
        if number is not None or isinstance(stream, NoStream):
            if not number:
                return self._faults.silent(sid, iova, write, pasid, ABORTED_BY_STE)
            fetch = stream.fetch if isinstance(stream, NoStream) else 0
            return self._faults.configuration(sid, iova, write, pasid, number, fetch)
        if stream.stage1 is not None or pasid is not None:
            outcome = self._translator.translate(sid, stream, iova, write, pasid)
            if isinstance(outcome, Stop):
                return self._faults.stopped(sid, iova, write, pasid, stream, outcome)
            return outcome
        if iova >> self.config.oas:
            return self._faults.stopped(sid, iova, write, None, stream, _BEYOND_IAS)
        stage2 = stream.stage2
        if stage2 is None:
            return iova
        entry = self._tlb.lookup(stage2.vmid, iova >> 12)
        if entry is None:
            counters.iotlb_misses += 1
            found = self._translator.fill2(stage2, iova, write)
            if isinstance(found, Stop):
                return self._faults.stopped(sid, iova, write, None, stream, found, iova)
            delta, allowed, _ = found
        else:
            counters.iotlb_hits += 1
            delta, allowed = entry
            if allowed & (CONFLICT | WRITABLE_CLEAN):
                second = self._translator.stage2(stage2, iova, ALLOW_WRITE if write else stream.need_read, CLASS_IN)
                if isinstance(second, Stop):
                    return self._faults.stopped(sid, iova, write, None, stream, second)
                return second[0]
        if allowed & (ALLOW_WRITE if write else stream.need_read):
            return iova + delta
        return self._faults.stopped(sid, iova, write, None, stream, _DENIED, iova)

    def walk(self, sid: int, iova: int, write: bool = False, pasid: int | None = None) -> Walk:
        return self._observer.walk(sid, iova, write, pasid)

    # -- translation services -------------------------------------------------------------------------------

    def connect_device_tlb(self, sid: int, port: InvalidationPort) -> None:
        """Invalidations that name ``sid`` go to ``port``."""
        self._ats.connect(sid, port)

    def translation_request(self, sid: int, iova: int, no_write: bool = False, pasid: int | None = None) -> Completion:
        """Translate the page of ``iova`` for a device's cache; unsupported where IDR0.ATS is 0."""
        return self._ats.translation(sid, iova, no_write, pasid)

    def translated_request(self, sid: int, maddr: int, write: bool) -> int | Fault:
        """An access to an address that a completion gave; with split-stage ATS that is an intermediate one."""
        return self._ats.translated(sid, maddr, write)

    # -- state ----------------------------------------------------------------------------------------------

    def save(self) -> Any:
        return (
            dict(self.registers.words),
            self._streams.save(),
            self._caches.save(),
            self.stalls.save(),
            self._commands.next_sync_fails,
            None if self._replacement is None else self._replacement.save(),
        )

    def restore(self, state: Any) -> None:
        registers, streams, caches, stalls, next_sync_fails, replacement = state
        self.registers.words.update(registers)
        self._streams.restore(streams)
        self._caches.restore(caches)
        self.stalls.restore(stalls)
        if self._replacement is not None:
            self._replacement.restore(replacement)
        self._events.refresh()
        self._commands.restore(next_sync_fails)
        if self.config.pri:
            self.pri.refresh()
        self._select()
        self.counters.clear()
