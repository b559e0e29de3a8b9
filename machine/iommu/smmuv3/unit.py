# SPDX-License-Identifier: GPL-2.0-or-later
"""The unit: registers in, translations and faults out (IHI 0070, 3.3 and 6).

:meth:`Smmuv3Unit.translate` is written flat because every emulated DMA passes here: a hit costs one look-up of
the StreamID and one of the page.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

from base.units import U64_MAX
from machine.iommu.smmuv3.commands import CommandQueue
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.events import (
    C_BAD_STE,
    C_BAD_STREAMID,
    CLASS_IN,
    EVENT_NAMES,
    F_ADDR_SIZE,
    F_PERMISSION,
    F_WALK_EABT,
    FETCH_ADDRESS_BITS,
    IPA_BITS,
    READ,
    STAGE_2,
    EventQueue,
    Record,
    configuration_event,
)
from machine.iommu.smmuv3.explain import explain
from machine.iommu.smmuv3.interrupts import Interrupts, Wire
from machine.iommu.smmuv3.registers import (
    CMDQ_BASE,
    CMDQ_CONS,
    CMDQ_PROD,
    CR0,
    CR0ACK,
    CR2,
    EVENTQ_BASE,
    EVENTQ_CONS,
    EVENTQ_PROD,
    GBPA,
    GBPA_ABORT,
    GBPA_UPDATE,
    GERRORN,
    IRQ_CTRL,
    IRQ_CTRLACK,
    RECINVSID,
    REGISTER_SIZE,
    SMMUEN,
    STRTAB_BASE,
    STRTAB_BASE_CFG,
    Gbpa,
    RegisterFile,
)
from machine.iommu.smmuv3.streams import (
    CONFIG_ABORT,
    CONFIG_ILLEGAL,
    NoStream,
    Stream,
    StreamTable,
)
from machine.iommu.smmuv3.tlb import Stage2Tlb, WalkCache
from machine.iommu.smmuv3.walk import ALLOW_READ, ALLOW_WRITE, Stop, Visit, walk_stage2
from machine.iommu.unit import Counters, Fault, Walk
from machine.mmio import SystemBus

ABORTED_BY_STE: Final = "STE.Config=abort"
ABORTED_BY_GBPA: Final = "GBPA.ABORT"
BEYOND_OAS: Final = "address beyond OAS"
"""Names of the three ways to be blocked without an event; their ``code`` is 0."""

_NOTHING: Final[dict[int, tuple[int, int]]] = {}


class Smmuv3Unit:
    """One SMMUv3 with stage 2: an ``IommuUnit``.

    ``iotlb_capacity``: how much the translation caches hold; ``None``: everything, until it is invalidated.
    ``wire`` is called with the name of every wired interrupt output that pulses.
    """

    def __init__(
        self,
        name: str,
        bus: SystemBus,
        config: Smmuv3Config | None = None,
        iotlb_capacity: int | None = None,
        wire: Wire | None = None,
    ) -> None:
        self.name = name
        self.register_size = REGISTER_SIZE
        executed: defaultdict[str, int] = defaultdict(int)
        self.counters = Counters(commands=executed)
        self.config: Final = config if config is not None else Smmuv3Config()
        self.registers: Final = RegisterFile(self.config)
        self._words: Final = bus.memory.words
        self._limit: Final = bus.memory.size >> 3
        self._tlb: Final = Stage2Tlb(iotlb_capacity)
        self._tables: Final = WalkCache(iotlb_capacity)
        self._streams: Final = StreamTable(bus.memory, self.registers, self.config)
        self._interrupts: Final = Interrupts(bus, self.registers, wire)
        self._events: Final = EventQueue(bus, self.registers, self._interrupts, self.config.eventq_log2)
        self._commands: Final = CommandQueue(
            bus.memory,
            self.registers,
            self.config,
            self._interrupts,
            self._streams,
            self._tlb,
            self._tables,
            executed,
        )
        self._translating = _NOTHING
        self._effects: Final = self._effect_table()

    def _effect_table(self) -> dict[int, Callable[[int], None]]:
        """What a write does beyond changing bits, by offset."""
        return {
            CR0: self._write_cr0,
            GBPA: self._write_gbpa,
            IRQ_CTRL: self._write_irq_ctrl,
            GERRORN: lambda _: self._commands.run(),
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
            EVENTQ_CONS: lambda _: self._events.trim(),
        }

    @property
    def iotlb(self) -> Stage2Tlb:
        """The translations that are cached."""
        return self._tlb

    @property
    def walk_cache(self) -> WalkCache:
        """The table descriptors that are cached."""
        return self._tables

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
        self._commands.run()

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

    def translate(self, sid: int, iova: int, write: bool) -> int | Fault:
        stream = self._translating.get(sid)
        if stream is not None:
            vmid, need_read = stream
            entry = self._tlb.lookup(vmid, iova >> 12)
            if entry is not None:
                delta, allowed = entry
                if allowed & (ALLOW_WRITE if write else need_read):
                    counters = self.counters
                    counters.config_hits += 1
                    counters.iotlb_hits += 1
                    return iova + delta
        return self._translate_slowly(sid, iova, write)

    def _translate_slowly(self, sid: int, iova: int, write: bool) -> int | Fault:
        """3.3.3: enable, configuration, address size, cached translation, walk, permission."""
        words = self.registers.words
        if not words[CR0] & SMMUEN:
            blocked = self._blocked_while_disabled(iova)
            return self._fault(sid, iova, write, 0, None, blocked) if blocked else iova
        counters = self.counters
        if sid in self._streams.cached:
            counters.config_hits += 1
        else:
            counters.config_misses += 1
        stream = self._streams.lookup(sid)
        number = self._configuration_fault(stream)
        if number is not None or isinstance(stream, NoStream):
            fetch = stream.fetch if isinstance(stream, NoStream) else 0
            return self._configuration_error(sid, iova, write, number or 0, fetch)
        if iova >> self.config.oas:
            return self._translation_error(sid, iova, write, F_ADDR_SIZE, stream, stage2=False)
        stage2 = stream.stage2
        if stage2 is None:
            return iova
        entry = self._tlb.lookup(stage2.vmid, iova >> 12)
        if entry is not None:
            counters.iotlb_hits += 1
            delta, allowed = entry
        else:
            counters.iotlb_misses += 1
            known = self._tables.known(stage2.vmid)
            found = walk_stage2(self._words, self._limit, stage2, iova, known)
            if isinstance(found, Stop):
                return self._translation_error(sid, iova, write, found.number, stream, fetch=found.fetch)
            base, order, allowed = found
            delta = base - (iova & -(4096 << order))
            self._tlb.insert(stage2.vmid, iova >> 12, order, (delta, allowed))
        if allowed & (ALLOW_WRITE if write else stream.need_read):
            return iova + delta
        return self._translation_error(sid, iova, write, F_PERMISSION, stream)

    def _blocked_while_disabled(self, iova: int) -> str | None:
        """6.3.14 and 3.4: bypass, or a silent abort."""
        if self.registers.words[GBPA] & GBPA_ABORT:
            return ABORTED_BY_GBPA
        return BEYOND_OAS if iova >> self.config.oas else None

    def _configuration_fault(self, stream: Stream | NoStream) -> int | None:
        """The event number of a configuration that stops every transaction: 0 for a silent one."""
        if isinstance(stream, NoStream):
            return stream.number
        if stream.config == CONFIG_ILLEGAL:
            return C_BAD_STE
        return 0 if stream.config == CONFIG_ABORT else None

    # -- faults ---------------------------------------------------------------------------------------------

    def _configuration_error(self, sid: int, iova: int, write: bool, number: int, fetch: int) -> Fault:
        if not number:
            return self._fault(sid, iova, write, 0, None, ABORTED_BY_STE)
        record: Record | None = configuration_event(number, sid, fetch)
        if number == C_BAD_STREAMID and not self.registers.words[CR2] & RECINVSID:
            record = None
        return self._fault(sid, iova, write, number, record)

    def _translation_error(
        self,
        sid: int,
        iova: int,
        write: bool,
        number: int,
        stream: Stream,
        stage2: bool = True,
        fetch: int = 0,
    ) -> Fault:
        """7.3.12 to 7.3.16; STE.S2R silences stage 2 faults, but not external aborts (5.5)."""
        address = iova & U64_MAX
        details = CLASS_IN | (stream.write_attributes if write else READ | stream.read_attributes)
        record: Record | None
        if number == F_WALK_EABT:
            record = (number | sid << 32, details | STAGE_2, address, fetch & FETCH_ADDRESS_BITS)
        elif not stage2:
            record = (number | sid << 32, details, address, 0)
        elif stream.stage2 is not None and stream.stage2.records:
            record = (number | sid << 32, details | STAGE_2, address, address & IPA_BITS)
        else:
            record = None
        return self._fault(sid, iova, write, number, record)

    def _fault(
        self, sid: int, iova: int, write: bool, number: int, record: Record | None, name: str | None = None
    ) -> Fault:
        self.counters.faults += 1
        written = record if record is not None and self._events.write(record) else ()
        return Fault(self.name, sid, iova, write, number, name or EVENT_NAMES[number], written)

    # -- explanation ----------------------------------------------------------------------------------------

    def walk(self, sid: int, iova: int, write: bool = False) -> Walk:
        visits: list[Visit] = []

        def finish(
            maddr: int | None,
            page_size: int | None = None,
            allowed: tuple[bool, bool] = (False, False),
            blocked: str | None = None,
        ) -> Walk:
            steps = tuple(explain(visit, self.config) for visit in visits)
            return Walk(sid, iova, write, steps, maddr, page_size, *allowed, blocked)

        if not self.registers.words[CR0] & SMMUEN:
            blocked = self._blocked_while_disabled(iova)
            return finish(None, blocked=blocked) if blocked else finish(iova, None, (True, True))
        stream = self._streams.explain(sid, visits)
        number = self._configuration_fault(stream)
        if number is not None or isinstance(stream, NoStream):
            return finish(None, blocked=EVENT_NAMES[number] if number else ABORTED_BY_STE)
        if iova >> self.config.oas:
            return finish(None, blocked=EVENT_NAMES[F_ADDR_SIZE])
        if stream.stage2 is None:
            return finish(iova, None, (True, True))
        found = walk_stage2(self._words, self._limit, stream.stage2, iova, None, visits)
        if isinstance(found, Stop):
            return finish(None, blocked=EVENT_NAMES[found.number])
        allowed = (bool(found.allowed & ALLOW_READ), bool(found.allowed & ALLOW_WRITE))
        if not found.allowed & (ALLOW_WRITE if write else stream.need_read):
            return finish(None, None, allowed, EVENT_NAMES[F_PERMISSION])
        size = 4096 << found.order
        return finish(found.base + (iova & size - 1), size, allowed)

    # -- state ----------------------------------------------------------------------------------------------

    def save(self) -> Any:
        return (dict(self.registers.words), self._streams.save(), self._tlb.save(), self._tables.save())

    def restore(self, state: Any) -> None:
        registers, streams, tlb, tables = state
        self.registers.words.update(registers)
        self._streams.restore(streams)
        self._tlb.restore(tlb)
        self._tables.restore(tables)
        self._events.refresh()
        self._commands.refresh()
        self._select()
        counters = self.counters
        counters.iotlb_hits = counters.iotlb_misses = 0
        counters.config_hits = counters.config_misses = counters.faults = 0
        counters.commands.clear()
