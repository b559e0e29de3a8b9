# SPDX-License-Identifier: GPL-2.0-or-later
"""Device models as subjects of the conformance suites, beside our own backends and anybody's.

Requests are DMA of the model's devices and the answers are the model's.  What only a program can do that has the unit
at hand (explain a walk, go back to a saved state) is our own half's, which runs in lockstep with it, or not asked.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from base.units import PAGE_SHIFT, Sbdf
from hypervisor.vtd.driver import VtdBackend
from machine.iommu.unit import Counters, Fault, IommuUnit, Walk
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from oracle import smmu_rig, vtd_rig
from oracle.catalogue import qemu_arm, qemu_x86
from oracle.dma_probe import Mailbox
from oracle.edu_machine import EduMachine
from oracle.lockstep import Lockstep
from oracle.qemu_pc import Pc
from oracle.qemu_virt import RAM_START, Virt, stages
from oracle.stage1_driver import Stage1Driver
from testbed import backends
from testbed.backends import TranslationBackend
from testbed.conformance import Elsewhere

DEVICES: Final = 3
_BESIDE: Final = 0x100
"""Where in the page a device hands out what it read."""
_EXEMPT: Final[Mapping[str, str]] = {
    "a_restored_unit_behaves_as_the_saved_one": "a running QEMU has no state that could be put back",
}
_EXEMPT_VTD: Final[Mapping[str, str]] = {
    **_EXEMPT,
    "registers_are_total": "QEMU asserts that software accesses each VT-d register with its own size, and ends itself",
}


class ModelUnit:
    """A model as an :class:`machine.iommu.unit.IommuUnit`."""

    def __init__(self, lockstep: Lockstep, mailboxes: dict[int, Mailbox]) -> None:
        self.name: Final = lockstep.name
        self.register_size: Final = lockstep.register_size
        self._lockstep: Final = lockstep
        self._mailboxes: Final = mailboxes
        self.read: Final = lockstep.read
        self.write: Final = lockstep.write

    @property
    def counters(self) -> Counters:
        return self._lockstep.counters

    def translate(self, sid: int, iova: int, write: bool, pasid: int | None = None) -> int | Fault:
        walk = self._lockstep.walk(sid, iova, write)
        if walk.maddr is None:
            self._mailboxes.pop(sid, None)
        else:
            self._mailboxes[sid] = Mailbox(iova ^ _BESIDE, walk.maddr ^ _BESIDE)
        return self._lockstep.access(sid, iova, write, walk).model

    def walk(self, sid: int, iova: int, write: bool = False) -> Walk:
        return self._lockstep.walk(sid, iova, write)

    def save(self) -> Any:
        raise NotImplementedError("a running QEMU has no state that could be put back")

    def restore(self, state: Any) -> None:
        raise NotImplementedError("a running QEMU has no state that could be put back")


class ModelMachine:
    """A :class:`testbed.conformance.rig.Machine` that QEMU runs."""

    def __init__(self, machine: EduMachine, make: Callable[[SystemBus], IommuUnit]) -> None:
        self._machine: Final = machine
        self.make_unit: Final = make

    @property
    def memory(self) -> PhysicalMemory:
        return self._machine.ram.memory

    def close(self) -> None:
        self._machine.close()


def _pc() -> ModelMachine:
    pc = Pc("aw-bits=48", DEVICES)

    def make(bus: SystemBus) -> IommuUnit:
        model, _, unit = vtd_rig.side_by_side(pc, bus, 48)
        return ModelUnit(unit, model.mailboxes)

    return ModelMachine(pc, make)


def _virt(stage: int) -> ModelMachine:
    virt = Virt(stage, DEVICES)

    def make(bus: SystemBus) -> IommuUnit:
        model, _, unit = smmu_rig.side_by_side(virt, stage)
        return ModelUnit(unit, model.mailboxes)

    return ModelMachine(virt, make)


def _vtd() -> tuple[TranslationBackend, Elsewhere]:
    qemu_x86()
    backend = replace(backends.VTD, name="qemu-vtd", title="QEMU's intel-iommu", make_driver=VtdBackend)
    return backend, Elsewhere(_pc, requesters=(Sbdf(0x18), Sbdf(0x20)), exempt=_EXEMPT_VTD)


def _smmuv3() -> tuple[TranslationBackend, Elsewhere]:
    """Below Xen's driver where this QEMU has stage 2, else below the stage 1 driver of the oracles."""
    stage = 2 if 2 in stages(qemu_arm()) else 1
    backend = replace(backends.SMMUV3, name="qemu-smmuv3", title=f"QEMU's SMMUv3, stage {stage}")
    if stage == 1:
        backend = replace(backend, make_driver=lambda platform, frames: Stage1Driver(platform, frames))
    elsewhere = Elsewhere(lambda: _virt(stage), RAM_START >> PAGE_SHIFT, (Sbdf(0x08), Sbdf(0x10)), _EXEMPT)
    return backend, elsewhere


MODELS: Final[Mapping[str, Callable[[], tuple[TranslationBackend, Elsewhere]]]] = {
    "qemu-vtd": _vtd,
    "qemu-smmuv3": _smmuv3,
}
"""By name: the backend and where its hardware half lives; :class:`oracle.process.ModelMissing` without QEMU."""
