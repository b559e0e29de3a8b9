# SPDX-License-Identifier: GPL-2.0-or-later
"""The stream table: which tree each stream id is translated through (IHI 0070, 3.3.1, 5.1, 5.2).

Two-level where the unit can (IDR0.ST_LEVEL): 256 streams to a second-level table, which is made when the first of
them is attached; otherwise one linear table.  Every entry is valid and aborts until a device is attached.

The unit may fetch an entry word by word at any moment, so it is never translating while it changes: it is made to
abort and the unit confirms, the words that name the tree are written and the unit confirms, and only then the word
that makes it translate (Xen's order, with the abort that Xen's detach before attach amounts to).
"""

from array import array
from typing import Final

from abi.errno import ENODEV, ENOMEM
from hypervisor.frames import DOMID_XEN, FrameTable
from hypervisor.smmuv3 import layouts as hw
from hypervisor.smmuv3.queue import CommandQueue
from machine.memory import PhysicalMemory

SPLIT: Final = 8
"""log2 of the streams that share a second-level table."""
_STES_PER_FRAME: Final = 4096 // (8 * hw.STE_WORDS)
_L2_ORDER: Final = 2
"""2^SPLIT entries of 64 bytes are four frames."""

ABORT: Final = hw.Ste0.pack(v=1, config=hw.CONFIG_ABORT)
TRANSLATE: Final = hw.Ste0.pack(v=1, config=hw.CONFIG_STAGE_2)
BYPASS: Final = hw.Ste0.pack(v=1, config=hw.CONFIG_BYPASS)
_STE1: Final = hw.Ste1.pack(shcfg=hw.SHCFG_INCOMING)
_STE1_ATS: Final = hw.Ste1.pack(shcfg=hw.SHCFG_INCOMING, eats=1)
_ABORT_FRAME: Final = array("Q", [ABORT, _STE1, 0, 0, 0, 0, 0, 0] * _STES_PER_FRAME)


class StreamTable:
    """The table of one unit for stream ids of ``sid_bits`` bits."""

    def __init__(self, memory: PhysicalMemory, frames: FrameTable, sid_bits: int, two_level: bool) -> None:
        self.sid_bits: Final = sid_bits
        self.two_level: Final = two_level and sid_bits > SPLIT
        self._memory: Final = memory
        self._frames: Final = frames
        self._base = 0
        self._second: dict[int, int] = {}
        """First frame of every second-level table, by the streams' number >> SPLIT."""

    def allocate(self) -> int:
        """Make the table (first level only, if there are two): 0 or -ENOMEM."""
        size = (8 << self.sid_bits - SPLIT) if self.two_level else (8 * hw.STE_WORDS << self.sid_bits)
        order = max(0, (size - 1).bit_length() - 12)
        base = self._frames.allocate(DOMID_XEN, order)
        if base is None:
            return -ENOMEM
        for frame in range(base, base + (1 << order)):
            if self.two_level:
                self._memory.zero_frame(frame)
            else:
                self._fill_with_aborts(frame)
        self._base = base
        return 0

    def registers(self) -> tuple[int, int]:
        """What STRTAB_BASE and STRTAB_BASE_CFG are to hold."""
        if self.two_level:
            config = hw.StrtabBaseCfg.pack(fmt=1, split=SPLIT, log2size=self.sid_bits)
        else:
            config = hw.StrtabBaseCfg.pack(fmt=0, log2size=self.sid_bits)
        return hw.StrtabBase.pack(ra=1) | self._base << 12, config

    def prepare(self, sid: int, queue: CommandQueue) -> int:
        """See that ``sid`` has an entry: 0, -ENODEV for an id beyond the table, -ENOMEM, -EIO."""
        if sid >> self.sid_bits:
            return -ENODEV
        if not self.two_level or sid >> SPLIT in self._second:
            return 0
        first = self._frames.allocate(DOMID_XEN, _L2_ORDER)
        if first is None:
            return -ENOMEM
        for frame in range(first, first + (1 << _L2_ORDER)):
            self._fill_with_aborts(frame)
        descriptor = hw.L1Descriptor.pack(span=SPLIT + 1) | first << 12
        self._memory.write64((self._base << 12) + 8 * (sid >> SPLIT), descriptor)
        self._second[sid >> SPLIT] = first
        # The unit may have cached that there was nothing, for any of these streams.
        group = sid >> SPLIT << SPLIT
        return queue.run_one(hw.Command.pack(op=hw.CMD_CFGI_STE_RANGE, sid=group), SPLIT - 1)

    def install(
        self, sid: int, dw2: int, dw3: int, caches: bool, queue: CommandQueue, first: tuple[int, int] | None = None
    ) -> int:
        """Translate ``sid`` through the tree that ``dw2`` and ``dw3`` describe (both 0: untranslated): 0,
        or -EIO with an entry that aborts.

        ``caches``: the device may keep translations of its own.  ``first``: words 0 and 1 that put a stage 1 before the
        tree.  :meth:`prepare` came before.
        """
        ste = self._entry(sid)
        command = hw.Command.pack(op=hw.CMD_CFGI_STE, sid=sid)
        write64 = self._memory.write64
        error = 0
        if not self.aborts(sid):
            error = self.block(sid, queue)
        if not error:
            dw0, dw1 = first or (TRANSLATE if dw3 else BYPASS, _STE1_ATS if caches else _STE1)
            write64(ste + 8, dw1)
            write64(ste + 16, dw2)
            write64(ste + 24, dw3)
            error = queue.run_one(command, 0)
        if not error:
            write64(ste, dw0)
            error = queue.run_one(command, 1)
            if error:
                write64(ste, ABORT)
        return error

    def block(self, sid: int, queue: CommandQueue) -> int:
        """Abort every request of ``sid``: 0, or -EIO if the unit did not confirm."""
        self._memory.write64(self._entry(sid), ABORT)
        return self.publish(sid, queue)

    def aborts(self, sid: int) -> bool:
        """Whether memory says that every request of ``sid``, which has an entry, is to abort."""
        return self._memory.words[self._entry(sid) >> 3] == ABORT

    def publish(self, sid: int, queue: CommandQueue) -> int:
        """Make the unit read the entry of ``sid`` anew: 0, or -EIO if it did not confirm."""
        return queue.run_one(hw.Command.pack(op=hw.CMD_CFGI_STE, sid=sid), 1)

    def _entry(self, sid: int) -> int:
        """Machine address of the entry of ``sid``."""
        if self.two_level:
            return (self._second[sid >> SPLIT] << 12) + (sid & (1 << SPLIT) - 1) * 8 * hw.STE_WORDS
        return (self._base << 12) + sid * 8 * hw.STE_WORDS

    def _fill_with_aborts(self, frame: int) -> None:
        if not self._memory.touched[frame]:
            self._memory.touch(frame)
        self._memory.words[frame << 9 : frame + 1 << 9] = memoryview(_ABORT_FRAME)

    def save(self) -> object:
        return dict(self._second)

    def restore(self, state: object) -> None:
        self._second = dict(state)  # type: ignore[call-overload]
