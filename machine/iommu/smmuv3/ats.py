# SPDX-License-Identifier: GPL-2.0-or-later
"""Translation services for devices with a cache of their own (IHI 0070, 3.9.1, 4.5.1, 13.6.3 to 13.6.5).

A translation request never records a fault of translation: what is not mapped is granted no rights.  Structures that
are broken answer "completer abort" without an event; a stream that may not ask is an unsupported request and
F_BAD_ATS_TREQ.  With split-stage ATS the device holds intermediate addresses, and what it does with them goes
through stage 2.
"""

from typing import Final

from base.units import U64_MAX
from machine.iommu.ats import EVERYTHING, Completion, InvalidateCompletion, InvalidateRequest, InvalidationPort, Status
from machine.iommu.smmuv3.commands import CommandQueue
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.contexts import substream
from machine.iommu.smmuv3.events import (
    CLASS_IN,
    F_ACCESS,
    F_ADDR_SIZE,
    F_BAD_ATS_TREQ,
    F_PERMISSION,
    F_TRANSL_FORBIDDEN,
    F_TRANSLATION,
    READ,
    who,
)
from machine.iommu.smmuv3.faults import ABORTED_BY_STE, BEYOND_OAS, FaultRecorder
from machine.iommu.smmuv3.invalidation import CERROR_ILL, HandlerTable
from machine.iommu.smmuv3.registers import ATSCHK, CR0, SMMUEN, RegisterFile
from machine.iommu.smmuv3.ste import CONFIG_ABORT, CONFIG_ILLEGAL, EATS_SPLIT, Stream
from machine.iommu.smmuv3.streams import NoStream, StreamTable
from machine.iommu.smmuv3.translation import Translator
from machine.iommu.smmuv3.walk import ALLOW_READ, ALLOW_WRITE, Stop
from machine.iommu.smmuv3.walk1 import VA_BITS
from machine.iommu.unit import Fault

_NOT_MAPPED: Final = frozenset((F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION))
_GLOBAL: Final = 1 << 9
_SSV: Final = 1 << 11
_SIZE: Final = 0x3F

NO_EVENT: Final = "configuration of a translated request"
"""Name of the fault of a translated transaction whose structures are broken; its ``code`` is 0."""


class TranslationServices:
    """The ATS interface of one unit."""

    def __init__(
        self,
        config: Smmuv3Config,
        registers: RegisterFile,
        streams: StreamTable,
        translator: Translator,
        faults: FaultRecorder,
    ) -> None:
        self._config: Final = config
        self._words: Final = registers.words
        self._streams: Final = streams
        self._translator: Final = translator
        self._faults: Final = faults
        self._ports: Final[dict[int, InvalidationPort]] = {}
        self._itag = 0
        self._queue: CommandQueue | None = None

    def connect(self, sid: int, port: InvalidationPort) -> None:
        """CMD_ATC_INV for ``sid`` goes to ``port``: a cable of the machine, no part of a snapshot."""
        self._ports[sid] = port

    def commands(self) -> HandlerTable:
        """CMD_ATC_INV."""
        return {0x40: ("CMD_ATC_INV", self._atc_inv)}

    def answer_to(self, queue: CommandQueue) -> None:
        """Invalidations that are not answered stop ``queue``."""
        self._queue = queue

    # -- requests of devices --------------------------------------------------------------------------------

    def translation(self, sid: int, iova: int, no_write: bool, pasid: int | None) -> Completion:
        """A translation request (3.9.1.2)."""
        if not self._config.ats:
            return Completion(Status.UNSUPPORTED)
        if not self._words[CR0] & SMMUEN:
            return self._refused(sid, iova, no_write, pasid)
        stream = self._streams.lookup(sid)
        if isinstance(stream, NoStream) or stream.config == CONFIG_ILLEGAL:
            return Completion(Status.ABORT)
        if stream.config == CONFIG_ABORT:
            return Completion(Status.UNSUPPORTED)
        if not self._services(stream):
            return self._refused(sid, iova, no_write, pasid)
        page = iova & U64_MAX & -4096
        read = self._find(sid, stream, page, False, pasid)
        write = None if no_write else self._find(sid, stream, page, True, pasid)
        for found in (read, write):
            if isinstance(found, Stop) and found.number not in _NOT_MAPPED:
                return Completion(Status.ABORT)
        best = write if isinstance(write, tuple) and not isinstance(write, Stop) else read
        if isinstance(best, Stop):
            return Completion(Status.SUCCESS)
        address, order = best
        return Completion(
            Status.SUCCESS,
            address >> 12 + order << 12 + order,
            order,
            not isinstance(read, Stop),
            write is not None and not isinstance(write, Stop),
        )

    def translated(self, sid: int, address: int, write: bool) -> int | Fault:
        """A translated transaction (3.9.1.3)."""
        cr0 = self._words[CR0]
        if not cr0 & SMMUEN or not self._config.ats:
            return self._forbidden(sid, address, write)
        if cr0 & ATSCHK:
            stream = self._streams.lookup(sid)
            if isinstance(stream, NoStream) or stream.config == CONFIG_ILLEGAL:
                return self._faults.silent(sid, address, write, None, NO_EVENT)
            if stream.config == CONFIG_ABORT:
                return self._faults.silent(sid, address, write, None, ABORTED_BY_STE)
            if not stream.eats:
                return self._forbidden(sid, address, write)
            if stream.eats == EATS_SPLIT:
                assert stream.stage2 is not None
                need = ALLOW_WRITE if write else stream.need_read
                second = self._translator.stage2(stream.stage2, address, need, CLASS_IN)
                if isinstance(second, Stop):
                    return self._faults.stopped(sid, address, write, None, stream, second)
                return second[0]
        if address >> self._config.oas:
            return self._faults.silent(sid, address, write, None, BEYOND_OAS)
        return address

    def _services(self, stream: Stream) -> bool:
        """Whether the effective EATS is not 0: a bypassed stream has none, and split-stage needs ATSCHK."""
        return stream.eats != 0 and (stream.eats != EATS_SPLIT or bool(self._words[CR0] & ATSCHK))

    def _find(self, sid: int, stream: Stream, iova: int, write: bool, pasid: int | None) -> tuple[int, int] | Stop:
        """Address for the device, machine or intermediate, and the order of the page; or why there is none."""
        split = stream.eats == EATS_SPLIT
        index = substream(stream.stage1, pasid)
        if isinstance(index, Stop):
            return index
        if index is None:
            if iova >> self._config.oas:
                return Stop(F_ADDR_SIZE, stage2=False)
            if stream.stage2 is None:
                return iova, 0
            need = ALLOW_WRITE if write else ALLOW_READ
            second = self._translator.stage2(stream.stage2, iova, need, CLASS_IN)
            return second if isinstance(second, Stop) else (iova if split else second[0], second[2])
        context = self._translator.context(sid, stream, index)
        if isinstance(context, Stop):
            return context
        entry = self._translator.entry(stream, context, iova, write)
        if isinstance(entry, Stop):
            return entry
        va = iova & VA_BITS
        maddr = self._translator.judge(stream, context, entry, va, write)
        if isinstance(maddr, Stop):
            return maddr
        return (va + entry[3] if split else maddr), self._translator.order1(context, va >> 12)

    def _refused(self, sid: int, iova: int, no_write: bool, pasid: int | None) -> Completion:
        """F_BAD_ATS_TREQ; of what the request asked for, the record holds the address."""
        record = (who(F_BAD_ATS_TREQ, sid, pasid), 0, iova & U64_MAX, 0)
        fault = self._faults.fault(sid, iova, not no_write, pasid, F_BAD_ATS_TREQ, record)
        return Completion(Status.UNSUPPORTED, fault=fault)

    def _forbidden(self, sid: int, address: int, write: bool) -> Fault:
        record = (who(F_TRANSL_FORBIDDEN, sid, None), 0 if write else READ, address & U64_MAX, 0)
        return self._faults.fault(sid, address, write, None, F_TRANSL_FORBIDDEN, record)

    # -- the command ----------------------------------------------------------------------------------------

    def _atc_inv(self, low: int, high: int) -> int:
        """4.5.1: sent at once; the next CMD_SYNC learns of a device that did not answer."""
        order = high & _SIZE
        if order > EVERYTHING:
            return CERROR_ILL
        if not self._words[CR0] & SMMUEN:
            return 0
        sid = low >> 32
        port = self._ports.get(sid)
        if port is None:  # nobody has such a cache: an unsupported request, which completes
            return 0
        self._itag = self._itag + 1 & 31
        pasid = low >> 12 & 0xF_FFFF if low & _SSV and self._config.ssid_bits else None
        every = pasid is not None and bool(low & _GLOBAL)
        request = InvalidateRequest(sid, self._itag, high >> 12 + order << 12 + order, order, pasid, every)
        if port.invalidate(request) != InvalidateCompletion(sid, self._itag) and self._queue is not None:
            self._queue.fail_next_sync()
        return 0
