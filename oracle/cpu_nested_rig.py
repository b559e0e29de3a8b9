# SPDX-License-Identifier: GPL-2.0-or-later
"""Both stages: our SMMU's nested translation beside a processor whose stage 1 and stage 2 are on.

The context descriptor gives TCR_EL1, TTBR0_EL1 and MAIR_EL1, the stream table entry VTCR_EL2, VTTBR_EL2 and
HCR_EL2.PTW; the processor then walks the same tables of both stages as our unit, with the stage 1 tables in
intermediate addresses.
"""

import random
from typing import Final

from base.units import PAGE_SHIFT
from hypervisor.frames import FrameTable
from hypervisor.iommu.backend import Backend
from hypervisor.iommu.context import IommuContext
from hypervisor.platform import Platform
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.events import C_BAD_CD, F_CD_FETCH
from machine.iommu.unit import Fault, Walk
from oracle import cpu_expect as expect
from oracle.cpu_rig import ABORTED_WALK, CODES, DATA_FIRST, DATA_LAST, EXTERNAL_ABORT, CpuRig
from oracle.cpu_walker import FIRST_FREE, HCR_RW, HCR_VM, RAM_SIZE, RAM_START, VTCR_RES1, Regime
from oracle.nested_driver import WINDOW, Layout, NestedDriver

STAGE_1: Final = "stage 1 descriptor"
_NESTED: Final = 0b1111
_HCR_PTW: Final = 1 << 2
_SCTLR: Final = 0x30D0_0801
"""M = 1 and the bits that read as 1."""
_SAME_IN_TCR: Final = 0x3F3F
"""T0SZ, IRGN0, ORGN0 and SH0 lie in TCR_EL1 where a context descriptor has them."""
_TCR_UPPER_OFF: Final = 16 << 16 | 1 << 23 | 2 << 30
"""The upper range of addresses: not walked."""
_ADDRESS: Final = 0x0000_FFFF_FFFF_F000
_S2: Final = 1 << 39
_CLASS: Final = 3 << 40
_CLASS_CD: Final = 0
_CLASS_TT: Final = 1 << 40
_TRIES: Final = 16
_FORGET: Final = (0x04, 31, 0x30, 0)
"""CFGI_ALL and TLBI_NSNH_ALL."""


class NestedCpuRig(CpuRig):
    """The machine.  Programs map into intermediate addresses, :data:`WINDOW` above the pages."""

    stage: int = 1
    window: int = WINDOW

    def __init__(self, bits: int = 48) -> None:
        super().__init__(bits, 48)
        self._start: Final = 0 if bits > 39 else 1
        """The level at which stage 1 starts."""
        self.steps["noise-below"] = self.noise_below

    def config(self, oas: int) -> Smmuv3Config:
        return Smmuv3Config(oas=oas, stage1=True, had=True)

    def driver(self, platform: Platform, frames: FrameTable, bits: int) -> Backend:
        tables = range(FIRST_FREE >> PAGE_SHIFT, RAM_START + RAM_SIZE >> PAGE_SHIFT)
        return NestedDriver(platform, frames, bits, Layout(range(DATA_FIRST, DATA_LAST + 1), tables))

    def flush(self, context: IommuContext) -> None:
        self.empty_caches()  # some random descriptors are global, which an ASID does not name

    def empty_caches(self) -> None:
        """Make our unit forget everything; the processor forgets before each batch."""
        backend = self.software.xen.backend
        assert isinstance(backend, NestedDriver)
        backend.unit.commands.run([*_FORGET])

    def regime(self, sid: int) -> Regime | None:
        steps = self.ours.walk(sid, 0).steps
        ste = next((step.words for step in steps if step.name == "STE"), None)
        cd = next((step.words for step in steps if step.name == "CD"), None)
        if ste is None or cd is None or ste[0] & 0xF != _NESTED:
            return None
        tcr = cd[0] & _SAME_IN_TCR | (cd[0] >> 14 & 1) << 7 | _TCR_UPPER_OFF | (cd[0] >> 32 & 7) << 32
        return Regime(
            vtcr=VTCR_RES1 | ste[2] >> 32 & 0x7FFFF,
            vttbr=(ste[2] & 0xFFFF) << 48 | ste[3] & _ADDRESS,
            hcr=HCR_VM | HCR_RW | (_HCR_PTW if ste[2] >> 54 & 1 else 0),
            sctlr=_SCTLR,
            tcr=tcr | (cd[0] >> 38 & 1) << 37 | (cd[1] >> 1 & 1) << 41,
            ttbr0=cd[0] >> 48 << 48 | cd[1] & _ADDRESS,
            mair=cd[3],
        )

    def expected(self, walk: Walk, write: bool) -> expect.Wanted | None:
        answer = self.ours.translate(walk.sid, walk.iova, write)
        steps = [step for step in walk.steps if step.level is not None]
        first = [step for step in steps if step.name == STAGE_1]
        last = steps[-1]
        descriptor, level = last.words[0], last.level or 0
        if not isinstance(answer, Fault):
            cd = next(step.words for step in walk.steps if step.name == "CD")
            leaf = first[-1].words[0]
            attributes = cd[3] >> 8 * (leaf >> 2 & 7) & 0xFF
            return expect.Wanted(expect.passed(answer, descriptor, (attributes, leaf >> 8 & 3)), descriptor, level)
        self.software.xen.backend.take_faults()  # or the event queue fills up
        if answer.code == EXTERNAL_ABORT:
            return expect.Wanted(ABORTED_WALK, descriptor, level)
        if answer.code in (C_BAD_CD, F_CD_FETCH):
            return None  # a processor has registers in place of a context descriptor
        if answer.code not in CODES or not answer.record:
            return expect.Wanted(f"our unit: {answer}", descriptor, level)
        code = CODES[answer.code]
        if not answer.record[1] & _S2:
            if not first:  # nothing was walked: the address is too wide
                return expect.Wanted(expect.fault(code, 0, 1))
            descriptor, level = first[-1].words[0], first[-1].level or 0
            return expect.Wanted(expect.fault(code, level, 1), descriptor, level)
        where = answer.record[1] & _CLASS
        if where == _CLASS_CD:
            return None
        level = level if last.name != STAGE_1 else 0  # nothing of stage 2 was walked: the address is too wide
        fetching = first[-1].level + 1 if first and first[-1].level is not None else self._start
        return expect.Wanted(expect.fault(code, level, 2, where == _CLASS_TT), descriptor, level, fetching)

    def random_descriptor(self, rng: random.Random, level: int, old: int, table: int) -> int:
        """A stage 1 descriptor with something wrong, or odd, or nothing at all."""
        kind = rng.choices((0, 1, 2, 3), (1, 4, 1, 6))[0]
        descriptor = kind | rng.randrange(8) << 2 | rng.choice((0, 2, 3)) << 8 | 1 << 10 | rng.getrandbits(2) << 6
        if kind == 3 and level < 3 and rng.random() < 0.6:
            target = rng.choice((old & _ADDRESS, table << 3, rng.randrange(0x8800_0000, 1 << 32) & ~0xFFF))
            return descriptor | target | rng.getrandbits(5) << 59 & ~(1 << 63)
        inside = rng.randrange(DATA_FIRST, DATA_LAST) + (WINDOW >> PAGE_SHIFT)
        descriptor |= rng.randrange(1 << 36) << 12 if rng.random() < 0.1 else inside << 12
        for bit, chance in ((10, 0.15), (11, 0.3), (51, 0.1), (52, 0.2), (53, 0.3), (54, 0.3), (55, 0.2), (63, 0.1)):
            if rng.random() < chance:
                descriptor ^= 1 << bit
        return descriptor

    def noise_below(self, number: int, dfn: int, place: int, seed: int) -> None:
        """Random descriptors in place of one of stage 2 on the way to ``dfn``, each looked through, then put right."""
        context = self.software.contexts.get(number)
        if context is None or not context.devices:
            return
        sid = context.devices[0].sbdf & 0xFFFF
        found = [step for step in self.ours.walk(sid, dfn << PAGE_SHIFT).steps if step.name.startswith("stage 2")]
        if not found:
            return
        step = found[place % len(found)]
        word, level = step.maddr >> 3, step.level or 0
        words, rng = self.memory.words, random.Random(seed)
        before = words[word]
        for _ in range(_TRIES):
            words[word] = super().random_descriptor(rng, level, before, word & ~511)
            self.empty_caches()
            self.look_at(sid, [(dfn << PAGE_SHIFT) + 2 * rng.randrange(2048)])
        words[word] = before
        self.empty_caches()
