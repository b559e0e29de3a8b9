# SPDX-License-Identifier: GPL-2.0-or-later
"""The command queue: commands go in, CMD_SYNC comes out, or -EIO (IHI 0070, 3.5, 4.7, 7.1).

The driver runs its commands one batch at a time and waits for each, so the queue is empty between batches.  That
CMD_SYNC is done shows in a word of memory that the unit writes (IDR0.MSI), or else in CMDQ_CONS.

A command that the unit refuses stops the queue.  It is overwritten by a CMD_SYNC, the error acknowledged and the rest
let through; the batch is reported as failed all the same, since the command had no effect.  A unit that stops
answering makes every later batch fail until it has caught up.  A device that does not answer a CMD_ATC_INV is the one
failure that says -ETIMEDOUT.
"""

from typing import Final

from abi.errno import EIO, ETIMEDOUT
from hypervisor.smmuv3 import layouts as hw
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

POLLS: Final = 256
"""Reads of CMDQ_CONS before a unit counts as not answering."""
RETRIES: Final = 4
"""Errors handled in one batch before it is given up."""
_CMDQ_ERR: Final = hw.Gerror.cmdq.mask
_PLAIN_SYNC: Final = hw.Sync.pack(op=hw.CMD_SYNC)


class CommandQueue:
    """2^``log2size`` slots (8 at most: one frame) in ``frame``.  Commands are flat lists of 64-bit words, two for each.

    ``msi_word`` is the index of the 64-bit word whose low half CMD_SYNC writes, ``None`` to poll.
    """

    def __init__(
        self, memory: PhysicalMemory, bus: SystemBus, base: int, frame: int, log2size: int, msi_word: int | None
    ) -> None:
        self.base_register: Final = hw.QueueBase.pack(allocate=1, log2size=log2size) | frame << 12
        self._memory: Final = memory
        self._words: Final = memory.words
        self._touched: Final = memory.touched
        self._bus: Final = bus
        self._base: Final = base
        self._prod_register: Final = base + hw.CMDQ_PROD
        self._cons_register: Final = base + hw.CMDQ_CONS
        self._start: Final = frame << 9
        self._slots: Final = 1 << log2size
        self._index_mask: Final = self._slots - 1
        self._wrap_mask: Final = 2 * self._slots - 1
        self._msi_word: Final = msi_word
        if msi_word is None:
            self._sync0 = _PLAIN_SYNC
            self._sync1 = 0
        else:
            self._sync0 = hw.Sync.pack(op=hw.CMD_SYNC, cs=1, msh=3, msi_attr=0xF)
            self._sync1 = msi_word << 3
        self._prod = 0
        self._sequence = 0
        self._behind = False
        """The unit had not reached ``_prod`` when the last batch was given up."""
        self.errors = 0
        """Commands that the unit refused."""

    def forget(self) -> None:
        """Start from an empty queue, as after a reset of the registers."""
        self._prod = 0
        self._behind = False

    def run_one(self, dw0: int, dw1: int) -> int:
        """Have one command executed and confirmed: 0, or -EIO."""
        prod = self._prod
        index = prod & self._index_mask
        word = self._start + 2 * index
        if self._behind or index == self._index_mask or not self._touched[word >> 9]:
            return self.run([dw0, dw1])
        words = self._words
        self._sequence = sequence = self._sequence + 1 & 0xFFFF_FFFF
        self._prod = prod = prod + 2 & self._wrap_mask
        words[word] = dw0
        words[word + 1] = dw1
        msi_word = self._msi_word
        if msi_word is not None:
            words[word + 2] = self._sync0 | sequence << 32
            words[word + 3] = self._sync1
            self._bus.store(self._prod_register, 4, prod)
            if words[msi_word] & 0xFFFF_FFFF == sequence:
                return 0
        else:
            words[word + 2] = _PLAIN_SYNC
            words[word + 3] = 0
            self._bus.store(self._prod_register, 4, prod)
            if self._bus.load(self._cons_register, 4) == prod:
                return 0
        return self._wait(prod)

    def run(self, commands: list[int]) -> int:
        """Have all of ``commands`` executed and confirmed: 0, or -EIO if any was refused or not confirmed."""
        if self._behind:
            self._wait(self._prod)
            if self._behind:
                return -EIO
        room = 2 * (self._slots - 1)
        error = 0
        for start in range(0, len(commands), room):
            error = self._run_batch(commands[start : start + room]) or error
            if self._behind:
                break
        return error

    def _run_batch(self, commands: list[int]) -> int:
        """Run what fits the queue together with its CMD_SYNC."""
        self._sequence = self._sequence + 1 & 0xFFFF_FFFF
        if self._msi_word is None:
            commands += (_PLAIN_SYNC, 0)
        else:
            commands += (self._sync0 | self._sequence << 32, self._sync1)
        if not self._touched[self._start >> 9]:
            self._memory.touch(self._start >> 9)
        index = self._prod & self._index_mask
        for k in range(0, len(commands), 2):
            word = self._start + 2 * index
            self._words[word] = commands[k]
            self._words[word + 1] = commands[k + 1]
            index = index + 1 & self._index_mask
        self._prod = prod = self._prod + len(commands) // 2 & self._wrap_mask
        self._bus.store(self._prod_register, 4, prod)
        return self._wait(prod)

    def _wait(self, prod: int) -> int:
        """Poll until the unit has consumed everything before ``prod``, clearing errors out of the way."""
        bus, base = self._bus, self._base
        error = 0
        retries = 0
        for _ in range(POLLS):
            cons = bus.load(self._cons_register, 4)
            gerror = bus.load(base + hw.GERROR, 4)
            if (gerror ^ bus.load(base + hw.GERRORN, 4)) & _CMDQ_ERR:
                timed_out = hw.CmdqCons.err.get(cons) == hw.CERROR_ATC_INV_SYNC
                error = error or (-ETIMEDOUT if timed_out else -EIO)
                retries += 1
                if retries > RETRIES:
                    break
                self._clear_error(cons, gerror)
            elif cons & self._wrap_mask == prod:
                self._behind = False
                return error
        self._behind = True
        return -EIO

    def _clear_error(self, cons: int, gerror: int) -> None:
        """Take the refused command out of the unit's way and let it go on (7.1)."""
        self.errors += 1
        if hw.CmdqCons.err.get(cons) != hw.CERROR_ABT:
            word = self._start + 2 * (cons & self._index_mask)
            self._memory.write64(word << 3, _PLAIN_SYNC)
            self._memory.write64(word + 1 << 3, 0)
        acknowledged = self._bus.load(self._base + hw.GERRORN, 4)
        self._bus.store(self._base + hw.GERRORN, 4, acknowledged ^ (acknowledged ^ gerror) & _CMDQ_ERR)

    def save(self) -> object:
        return (self._prod, self._sequence, self._behind, self.errors)

    def restore(self, state: object) -> None:
        self._prod, self._sequence, self._behind, self.errors = state  # type: ignore[misc]
