# SPDX-License-Identifier: GPL-2.0-or-later
"""Our SMMUv3 software half and our SMMU on RAM that a processor walks as well.

The SMMU's registers are our own model's; what is judged is what lies in memory: the stream table entry that the driver
wrote gives VTCR_EL2 and VTTBR_EL2, and the processor then walks the same stage 2 tables as our unit.

Memory: 1 GiB of frames that programs map, then the walker's own program, then tables.  What lies below
:data:`RAM_START` is not RAM for the processor and stays out of use.
"""

import random
from array import array
from collections.abc import Callable, Sequence
from typing import Final

from base.units import PAGE_SHIFT, DomId, make_sbdf
from hypervisor import profile
from hypervisor.frames import FrameTable
from hypervisor.iommu.backend import Backend
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.platform import Platform
from hypervisor.smmuv3.driver import Smmuv3Backend
from hypervisor.xen import XEN_FRAMES, Xen
from machine.firmware import Firmware, SmmuNode
from machine.interrupts import ITS_DOORBELL_OFFSET, ITS_DOORBELL_PAGE, MessageInterrupts
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.unit import Smmuv3Unit
from machine.iommu.unit import Fault, Walk
from machine.mmio import SystemBus
from machine.pci import PciFunction, PciTopology
from oracle import cpu_expect as expect
from oracle.cpu_walker import ABORTED, FIRST_FREE, MOST, RAM_START, VTCR_RES1, WRITE, CpuWalker, Regime
from oracle.lockstep import Difference, Tally
from oracle.process import major_version
from oracle.software import Software

DATA_FIRST: Final = RAM_START >> PAGE_SHIFT
DATA_LAST: Final = DATA_FIRST + 0x3_FFFF
SMMU_BASE: Final = 0xFD00_0000
DEVICES: Final = 4
ASSERTS: Final = 10
"""Version of QEMU whose processor ends itself over an access that stage 2 denies (``!res.cacheattrs.is_s2_format``)."""
_EVEN: Final = bytes(range(0, 256, 2))

CODES: Final = {
    0x10: expect.TRANSLATION,
    0x11: expect.ADDRESS_SIZE,
    0x12: expect.ACCESS_FLAG,
    0x13: expect.PERMISSION,
}
"""Our unit's events as fault status codes."""
EXTERNAL_ABORT: Final = 0x0B
_TRANSLATION: Final = 0x10
ADDRESS_SIZE: Final = 0x11
ABORTED_WALK: Final = "external abort"
_LEAF: Final = 0xF << 2 | 3 << 8
"""MemAttr and SH of a device's mapping: Normal write-back, inner shareable."""
_STAGE_2: Final = 0b1101
"""Bits 3:0 of a stream table entry: valid, Config = stage 2 translates."""


class CpuRig:
    """The machine, with the SMMU switched on.  ``bits``: width of input addresses; ``oas``: of output addresses."""

    stage: int = 2
    """The stage whose tables software writes."""
    window: int = 0
    """How far the addresses that it writes into leaves lie above those of the machine."""

    def __init__(self, bits: int = 40, oas: int = 40) -> None:
        self.walker: Final = CpuWalker()
        self._version: Final = major_version(self.walker.program)
        try:
            self._assemble(bits, oas)
        except BaseException:
            self.walker.close()
            raise

    def _assemble(self, bits: int, oas: int) -> None:
        memory = self.memory = self.walker.ram.memory
        bus = SystemBus(memory)
        interrupts = MessageInterrupts()
        bus.map(ITS_DOORBELL_PAGE, 0x1000, interrupts)
        self.ours = Smmuv3Unit("our SMMUv3", bus, self.config(oas), None)
        bus.map(SMMU_BASE, self.ours.register_size, self.ours)
        topology = PciTopology()
        self.devices = [
            PciDevice(topology.add(PciFunction(sbdf)), (sbdf,))
            for sbdf in (make_sbdf(0, 0, slot, 0) for slot in range(1, DEVICES + 1))
        ]
        firmware = Firmware(smmus=(SmmuNode(SMMU_BASE),))
        doorbell = ITS_DOORBELL_PAGE + ITS_DOORBELL_OFFSET
        platform = Platform(memory, bus, topology, firmware, interrupts, doorbell)

        def make_driver(platform: Platform, frames: FrameTable) -> Backend:
            first = FIRST_FREE >> PAGE_SHIFT
            frames.allocate_at(DomId(0), XEN_FRAMES, first - XEN_FRAMES)
            return self.driver(platform, frames, bits)

        xen = Xen(platform, profile.get("v7-fixed"), make_driver)
        self.software = Software(xen, self.devices)
        self.tally = Tally()
        self.differences: list[Difference] = []
        self.steps: dict[str, Callable[..., None]] = {
            "context": self.software.context,
            "free": self.software.free,
            "attach": self.software.attach,
            "detach": self.software.detach,
            "map": self.software.map,
            "unmap": self.software.unmap,
            "sweep": self.sweep,
            "look": self.look,
            "noise": self.noise,
        }

    def config(self, oas: int) -> Smmuv3Config:
        """What our SMMU is to have."""
        return Smmuv3Config(oas=oas)

    def driver(self, platform: Platform, frames: FrameTable, bits: int) -> Backend:
        """The software half."""
        return Smmuv3Backend(platform, frames, input_bits=bits)

    def close(self) -> None:
        self.walker.close()

    def model_words(self) -> str:
        return ""

    # ------------------------------------------------------------------------------------------------ steps

    def sweep(self, number: int) -> None:
        """Every mapping of a context, reads and writes, against what software was asked to map."""
        context = self.software.contexts.get(number)
        if context is None or not context.devices:
            return
        sid = context.devices[0].sbdf & 0xFFFF
        regime = self.regime(sid)
        if regime is None:
            self._differ(f"context {number}", "has devices", "their stream table entries do not translate with stage 2")
            return
        table = context.table
        assert table is not None
        requests, wanted = array("Q"), array("Q")
        for dfn, mfn, pages, permission in self.software.intents[number].ranges():
            at = 0
            while at < pages:
                found = table.lookup(dfn + at)
                order = 0 if found is None else found[2]
                # One leaf, or the pages that share a table; large ones are looked at in even steps.
                run = min(pages - at, (1 << max(order, 9)) - (dfn + at & (1 << max(order, 9)) - 1))
                stride = max(run >> 9, 1)
                self._sweep_run(sid, dfn + at, mfn + at, run, stride, permission, 3 - order // 9, requests, wanted)
                at += run
                if len(requests) > MOST - 4096:
                    self._compare(regime, requests, wanted, number)
                    requests, wanted = array("Q"), array("Q")
        self._compare(regime, requests, wanted, number)

    def _sweep_run(
        self,
        sid: int,
        dfn: int,
        mfn: int,
        pages: int,
        stride: int,
        permission: int,
        level: int,
        requests: "array[int]",
        wanted: "array[int]",
    ) -> None:
        """Requests and their answers for ``pages`` pages below one table or leaf; our unit is asked at once."""
        step = stride << PAGE_SHIFT
        addresses = range(dfn << PAGE_SHIFT, dfn + pages << PAGE_SHIFT, step)
        first = (mfn << PAGE_SHIFT) - self.window
        outputs = range(first, first + (pages << PAGE_SHIFT), step)
        good = expect.passed(0, _LEAF)
        for write in (False, True):
            denied = not permission & (2 if write else 1)
            if denied and self._ends_model(expect.fault(expect.PERMISSION, level, self.stage)):
                continue
            requests.extend(range(addresses.start + write, addresses.stop + write, step))
            if permission & (2 if write else 1):
                wanted.extend(range(good + outputs.start, good + outputs.stop, step))
                translate = self.ours.translate
                mine = [translate(sid, address, write) for address in addresses]
                if mine != list(outputs):
                    at = next(k for k, got in enumerate(mine) if got != outputs[k])
                    self._differ(
                        f"{_kind(write)} of {addresses[at]:#x}", mine[at], outputs[at], "as software was asked"
                    )
            else:
                wanted.extend([expect.fault(expect.PERMISSION, level, self.stage)] * len(addresses))
                answer = self.ours.translate(sid, addresses.start, write)
                if not isinstance(answer, Fault) or CODES.get(answer.code) != expect.PERMISSION:
                    self._differ(f"{_kind(write)} of {addresses.start:#x}", answer, "a permission fault", "software")

    def _compare(self, regime: Regime, requests: "array[int]", wanted: "array[int]", number: int) -> None:
        """Let the processor translate and hold its answers against what they should be."""
        if not requests:
            return
        answers = self.walker.translate(regime, requests)
        self._count(answers)
        if answers == wanted:
            return
        for request, par, should in zip(requests, answers, wanted):
            if par != should:
                what = f"AT S12E1{'W' if request & WRITE else 'R'} of {request & -2:#x} in context {number}"
                self._differ(what, f"PAR_EL1 {should:#x}", f"PAR_EL1 {par:#x}")
                return

    def look(self, number: int, *addresses: int) -> None:
        """Single addresses, reads and writes: our walk against the processor's, faults and their levels included."""
        context = self.software.contexts.get(number)
        if context is not None and context.devices:
            self.look_at(context.devices[0].sbdf & 0xFFFF, addresses)

    def look_at(self, sid: int, addresses: Sequence[int]) -> None:
        regime = self.regime(sid)
        if regime is None:
            return
        requests = array("Q")
        wanted: list[expect.Wanted] = []
        for address in addresses:
            walk = self.ours.walk(sid, address & -2)  # a write reads the same descriptors
            if any(step.maddr < RAM_START for step in walk.steps):
                continue  # what is RAM for our unit only
            for write in (False, True):
                expected = self.expected(walk, write)
                if expected is not None and not self._ends_model(expected.par):
                    requests.append(address & -2 | write)
                    wanted.append(expected)
        answers = self.walker.translate(regime, requests)
        self._count(answers)
        for request, par, should in zip(requests, answers, wanted):
            if par == should.par or (should.par == ABORTED_WALK and par >> 48 == ABORTED >> 48):
                continue
            if self._excused(should, par):
                continue
            what = f"AT S12E1{'W' if request & WRITE else 'R'} of {request & -2:#x}, descriptor {should.descriptor:#x}"
            shown = should.par if isinstance(should.par, str) else f"PAR_EL1 {should.par:#x}"
            self._differ(f"{what} at level {should.level}", shown, f"PAR_EL1 {par:#x}")

    def _excused(self, should: expect.Wanted, par: int) -> bool:
        for deviation in expect.WALK_DEVIATIONS:
            if self._version < deviation.fixed_in and deviation.excuses(should, par):
                self.tally.excused[deviation.name] = self.tally.excused.get(deviation.name, 0) + 1
                return True
        return False

    def _ends_model(self, par: int | str) -> bool:
        """Whether QEMU 10 ends itself over an access with this outcome: stage 2 denies it."""
        return self._version == ASSERTS and isinstance(par, int) and expect.is_denied_by_stage_2(par)

    def expected(self, walk: Walk, write: bool) -> expect.Wanted | None:
        """PAR_EL1 for an access to where ``walk`` went, as our unit has it; ``None``: the processor cannot say."""
        address = walk.iova
        answer = self.ours.translate(walk.sid, address, write)
        if address > self.software.xen.backend.max_iova:
            # Wider than the tables: the processor walks nothing.  Our unit says so too, or that it is too wide for it.
            blocked = isinstance(answer, Fault) and answer.code in (_TRANSLATION, ADDRESS_SIZE)
            return expect.Wanted(expect.fault(expect.TRANSLATION, 0) if blocked else f"our unit: {answer}")
        steps = [step for step in walk.steps if step.level is not None]
        descriptor, level = (steps[-1].words[0], steps[-1].level or 0) if steps else (0, 0)
        if isinstance(answer, Fault):
            if answer.code == EXTERNAL_ABORT:
                return expect.Wanted(ABORTED_WALK, descriptor, level)
            return expect.Wanted(expect.fault(CODES[answer.code], level), descriptor, level)
        return expect.Wanted(expect.passed(answer, descriptor), descriptor, level)

    def noise(self, number: int, dfn: int, level: int, seed: int) -> None:
        """Fill the table that holds the level ``level`` descriptor of ``dfn`` with random ones, look at all of them,
        and put the table back."""
        context = self.software.contexts.get(number)
        if context is None or not context.devices:
            return
        sid = context.devices[0].sbdf & 0xFFFF
        found = list(self.ours.walk(sid, dfn << PAGE_SHIFT).steps)
        found = [step for step in found if step.level == level and step.name.startswith(f"stage {self.stage}")]
        if not found:
            return
        table = found[0].maddr >> PAGE_SHIFT << 9
        shift = 39 - 9 * level
        first = (dfn << PAGE_SHIFT) - ((found[0].maddr >> 3 & 511) << shift) & -(1 << shift)
        words = self.memory.words
        before = words[table : table + 512].tolist()
        rng = random.Random(seed)
        for slot in range(512):
            words[table + slot] = self.random_descriptor(rng, level, before[slot], table)
        self.flush(context)
        self.look_at(sid, [first + (slot << shift) + rng.randrange(1 << shift) for slot in range(512)])
        words[table : table + 512] = memoryview(array("Q", before))
        self.flush(context)

    def flush(self, context: IommuContext) -> None:
        self.software.xen.backend.flush_all(context)

    def random_descriptor(self, rng: random.Random, level: int, old: int, table: int) -> int:
        """A descriptor with something wrong, or odd, or nothing at all."""
        kind = rng.choices((0, 1, 2, 3), (1, 4, 1, 6))[0]
        descriptor = kind | rng.getrandbits(4) << 2 | 1 << 10 | rng.getrandbits(4) << 6
        if descriptor >> 2 & 3 == 0 and descriptor >> 4 & 3:
            descriptor |= 1 << 2  # inner attribute 0 is reserved for Normal memory
        if descriptor >> 8 & 3 == 1:
            descriptor ^= 1 << 8  # and so is this shareability
        if kind == 3 and level < 3 and rng.random() < 0.6:
            # A table: the old one, this very one, one outside RAM.
            target = rng.choice((old & 0xFFFF_FFFF_F000, table << 3, rng.randrange(0x8800_0000, 1 << 32) & ~0xFFF))
            return descriptor | target
        descriptor |= rng.randrange(1 << 36) << 12 if rng.random() < 0.3 else rng.randrange(DATA_FIRST, DATA_LAST) << 12
        for bit, chance in ((10, 0.15), (11, 0.1), (51, 0.1), (52, 0.2), (53, 0.3), (54, 0.3), (55, 0.2), (63, 0.1)):
            if rng.random() < chance:
                descriptor ^= 1 << bit
        return descriptor

    # ------------------------------------------------------------------------------------------------ parts

    def regime(self, sid: int) -> Regime | None:
        """The processor's registers as the stream table entry of ``sid`` has them; ``None`` if it is no stage 2 one."""
        ste = next((step.words for step in self.ours.walk(sid, 0).steps if len(step.words) == 8), None)
        if ste is None or ste[0] & 0xF != _STAGE_2:
            return None
        vtcr = VTCR_RES1 | ste[2] >> 32 & 0x7FFFF
        return Regime(vtcr, (ste[2] & 0xFFFF) << 48 | ste[3] & 0xFFFF_FFFF_FFF0)

    def _count(self, answers: "array[int]") -> None:
        self.tally.accesses += len(answers)
        faults = len(answers.tobytes()[::8].translate(None, _EVEN))
        self.tally.faulted += faults
        self.tally.passed += len(answers) - faults

    def _differ(self, what: str, ours: object, model: object, note: str = "") -> None:
        self.differences.append(Difference(what + (f", {note}" if note else ""), str(ours), str(model)))


def _kind(write: bool) -> str:
    return "write" if write else "read"
