# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's Arm processor as a page walker: a program at EL2 that translates addresses in batches (Arm ARM D8, AT).

The program waits in a loop for a new batch number in its mailbox, loads the translation registers from there, drops
every cached translation, runs an ``AT`` instruction for each request and stores PAR_EL1.  Requests and answers are
arrays in RAM; bit 0 of a request, below every page offset that matters, asks for a write.

An external abort on a walk raises an exception instead of filling PAR_EL1; the handler turns it into an answer.
"""

import os
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from oracle import process
from oracle.arm_encode import Program
from oracle.qtest import Qtest
from oracle.shared_ram import SharedRam

RAM_START: Final = 0x4000_0000
RAM_SIZE: Final = 0x4800_0000
"""1 GiB for pages, and 128 MiB for tables and the program."""
CODE: Final = 0x8000_0000
"""Where the program lies."""
_MAILBOX: Final = CODE + 0x1_0000
_REQUESTS: Final = CODE + 0x10_0000
_ANSWERS: Final = CODE + 0x20_0000
FIRST_FREE: Final = CODE + 0x40_0000
"""First machine address that the walker leaves to tables."""
MOST: Final = 0x2_0000
"""Most requests of a batch."""
WRITE: Final = 1
PATIENCE: Final = 60.0
"""Seconds for a batch."""

ABORTED: Final = 0xE5E5 << 48
"""In bits 63:48 of an answer: the walk ended with an exception; bits 47:0 are ESR_EL2 with bit 0 set."""

_PACKAGE: Final = "qemu-system-arm"

# The mailbox, in bytes.
_GO: Final = 0
_DONE: Final = 8
_COUNT: Final = 16
_REGISTERS: Final = (
    ("hcr_el2", 24),
    ("vtcr_el2", 32),
    ("vttbr_el2", 40),
    ("sctlr_el1", 48),
    ("tcr_el1", 56),
    ("ttbr0_el1", 64),
    ("mair_el1", 72),
)

HCR_VM: Final = 1 << 0
HCR_DC: Final = 1 << 12
"""Stage 1 counts as off, and memory as Normal, write-back: stage 2's own attributes become visible."""
HCR_RW: Final = 1 << 31
VTCR_RES1: Final = 1 << 31


def program() -> Program:
    """The EL2 program."""
    p = Program()
    mailbox, seen, count, request, answer, value, one, scratch = 20, 21, 2, 3, 4, 5, 8, 7
    p.load_constant(mailbox, _MAILBOX)
    p.load_constant(seen, 0)
    p.load_constant(one, 1)
    p.address_of(scratch, "vectors")
    p.write_system("vbar_el2", scratch)
    p.isb()
    p.label("wait")
    p.relax()
    p.load(value, mailbox, _GO)
    p.compare(value, seen)
    p.branch_if_equal("wait")
    p.move(seen, value)
    p.barriers()
    for name, offset in _REGISTERS:
        p.load(value, mailbox, offset)
        p.write_system(name, value)
    p.isb()
    p.invalidate_tlb()
    p.barriers()
    p.load(count, mailbox, _COUNT)
    p.load_constant(request, _REQUESTS)
    p.load_constant(answer, _ANSWERS)
    p.branch_if_zero(count, "done")
    p.label("next")
    p.load_next(value, request)
    p.branch_if_bit(value, 0, "write")
    p.translate_address("s12e1r", value)
    p.branch("fetch")
    p.label("write")
    p.translate_address("s12e1w", value)
    p.label("fetch")
    p.isb()
    p.read_system(value, "par_el1")
    p.label("keep")
    p.store_next(value, answer)
    p.subtract(count, count, 1)
    p.branch_if_not_zero(count, "next")
    p.label("done")
    p.barriers()
    p.store(seen, mailbox, _DONE)
    p.branch("wait")
    p.align(2048)
    p.label("vectors")
    p.branch("vectors")
    p.align(512)  # synchronous exception from this level: offset 200h
    p.read_system(value, "esr_el2")
    p.insert_top(value, ABORTED >> 48)
    p.or_with(value, value, one)
    p.address_of(scratch, "keep")
    p.write_system("elr_el2", scratch)
    p.exception_return()
    return p


@dataclass(frozen=True, slots=True)
class Regime:
    """The registers that decide how addresses are translated."""

    vtcr: int
    vttbr: int
    hcr: int = HCR_VM | HCR_DC | HCR_RW
    sctlr: int = 0
    tcr: int = 0
    ttbr0: int = 0
    mair: int = 0


class CpuWalker:
    """The processor, waiting for batches."""

    def __init__(self) -> None:
        found = self.program = process.find_program(("qemu-system-aarch64",), _PACKAGE, "PVIOMMU_QEMU_AARCH64")
        self.ram: Final = SharedRam(RAM_SIZE, RAM_START)
        self._memory: Final = self.ram.memory
        self._words: Final = self.ram.memory.words
        code = program().words()
        self._memory.write(CODE, b"".join(word.to_bytes(4, "little") for word in code))
        self._batch = 0
        self._pending = 0
        try:
            self._connection: Final = Qtest(
                found,
                [
                    *("-machine", "virt,virtualization=on,highmem=off,memory-backend=ram"),
                    *("-cpu", "max", "-m", f"{RAM_SIZE >> 20}M", "-accel", "tcg,thread=single"),
                    *("-device", f"loader,addr={CODE:#x},cpu-num=0"),
                ],
                self.ram,
            )
        except BaseException:
            self.ram.close()
            raise

    def start(self, regime: Regime, requests: "Sequence[int] | array[int]") -> None:
        """Begin a batch: at most :data:`MOST` input addresses, bit 0 set for a write."""
        words = self._words
        requests = array("Q", requests)
        first = _REQUESTS >> 3
        words[first : first + len(requests)] = memoryview(requests)
        box = _MAILBOX >> 3
        words[box + (_COUNT >> 3)] = len(requests)
        values = (regime.hcr, regime.vtcr, regime.vttbr, regime.sctlr, regime.tcr, regime.ttbr0, regime.mair)
        for (_, offset), value in zip(_REGISTERS, values):
            words[box + (offset >> 3)] = value
        self._batch += 1
        self._pending = len(requests)
        words[box] = self._batch

    def finish(self) -> "array[int]":
        """PAR_EL1 for every request of the batch; :class:`process.ModelDied` if the processor does not finish."""
        words = self._words
        done = _MAILBOX + _DONE >> 3
        deadline = time.monotonic() + PATIENCE
        while words[done] != self._batch:
            os.sched_yield()
            if time.monotonic() > deadline:
                raise process.ModelDied(
                    f"the processor did not finish a batch: {self._connection.process.said()[-300:]}"
                )
        first = _ANSWERS >> 3
        return array("Q", words[first : first + self._pending].tobytes())

    def translate(self, regime: Regime, requests: "Sequence[int] | array[int]") -> "array[int]":
        """A batch, start to end."""
        self.start(regime, requests)
        return self.finish()

    def close(self) -> None:
        """End the process and give its RAM back."""
        self._connection.close()
        self.ram.close()
