# SPDX-License-Identifier: GPL-2.0-or-later
"""A program run with one wrong bit planted, and whether the model shows it.

A bit of a table entry is flipped in memory after every step of software, as if software had written it so, and put
right before the next one (there is no DMA in between, so no cache ever sees it right); a bit of a command is flipped in
its queue just before the doorbell.  What our own hardware half says is no matter.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from hypervisor.errors import XenBug
from machine.iommu.unit import IommuUnit, Walk
from machine.memory import PhysicalMemory
from oracle.device_rig import SOFTWARE_STEP, DeviceRig
from oracle.lockstep import Difference
from oracle.plants import Plant, smmu_command, structure_of, vtd_descriptor
from oracle.process import ModelDied
from oracle.program import Step
from oracle.smmu_rig import SmmuRig
from oracle.software import Software
from oracle.vtd_rig import VtdRig


class PlantRig(Protocol):
    """What planting needs of a rig."""

    @property
    def memory(self) -> PhysicalMemory: ...

    @property
    def ours(self) -> IommuUnit: ...

    @property
    def software(self) -> Software: ...

    @property
    def steps(self) -> Mapping[str, Callable[..., None]]: ...

    @property
    def differences(self) -> list[Difference]: ...

    def close(self) -> None: ...


_SOFTWARE: Final = frozenset({"context", "free", "attach", "detach", "map", "unmap"})


class Saboteur:
    """Runs a program on a rig with one bit planted; ``addresses`` are those that it reaches."""

    def __init__(self, rig: PlantRig, plant: Plant, addresses: Sequence[int]) -> None:
        self._rig: Final = rig
        self._plant: Final = plant
        self._addresses: Final = tuple(addresses)
        self._planted: list[int] = []

    def run(self, program: Sequence[Step]) -> bool:
        """Whether anything but agreement comes out; software that gives up counts as noticed."""
        self._watch_queue()
        try:
            for step in program:
                software = step.word in _SOFTWARE
                if software:
                    self._flip_back()
                self._rig.steps[step.word](*step.arguments)
                if software:
                    self._flip()
                if self._noticed():
                    return True
        except (XenBug, IndexError, KeyError, StopIteration, ModelDied):
            return True  # software gave up, or QEMU did: it asserts that a wait descriptor has not both IF and SW
        return False

    def _noticed(self) -> bool:
        """Whether the model's answers, or its refusal to confirm, show something; what our half thinks is no matter."""
        rig = self._rig
        if isinstance(rig, DeviceRig):
            return rig.strayed or any(difference.what == SOFTWARE_STEP for difference in rig.differences)
        return bool(rig.differences)

    def _flip(self) -> None:
        """Flip the bit in every entry of the kind that the program's addresses meet."""
        words = self._rig.memory.words
        found: set[int] = set()
        for device in self._rig.software.devices:
            for address in self._addresses:
                for step in self._walk(device.sbdf & 0xFFFF, address).steps:
                    if structure_of(step) == self._plant.structure and self._plant.word < len(step.words):
                        found.add((step.maddr >> 3) + self._plant.word)
        for word in found:
            words[word] ^= 1 << self._plant.bit
        self._planted = sorted(found)

    def _walk(self, sid: int, address: int) -> Walk:
        return self._rig.ours.walk(sid, address)

    def _flip_back(self) -> None:
        for word in self._planted:
            self._rig.memory.words[word] ^= 1 << self._plant.bit
        self._planted = []

    # Commands.

    def _watch_queue(self) -> None:
        """Look at what is queued before the unit is told, on rigs whose unit is a model in another process."""
        rig = self._rig
        if not isinstance(rig, (VtdRig, SmmuRig)):
            return
        unit = rig.unit
        write = unit.write
        doorbell, base, prod = (0x88, 0x90, 4) if isinstance(rig, VtdRig) else (0x98, 0x90, 0)
        kind = vtd_descriptor if isinstance(rig, VtdRig) else smmu_command
        seen = rig.ours.read(doorbell, 4) >> prod
        plant, words = self._plant, rig.memory.words
        address = rig.ours.read(base, 8)
        start = (address & 0xF_FFFF_FFFF_F000) >> 3
        wrap = 256 if isinstance(rig, VtdRig) else 2 << (address & 31)
        slots = 256 if isinstance(rig, VtdRig) else 1 << (address & 31)

        def watched(offset: int, size: int, value: int) -> None:
            nonlocal seen
            if offset == doorbell:
                end = value >> prod
                while seen != end:
                    at = start + 2 * (seen % slots)
                    if kind(words[at]) == plant.structure:
                        words[at + plant.word] ^= 1 << plant.bit
                    seen = (seen + 1) % wrap
            write(offset, size, value)

        unit.write = watched  # type: ignore[method-assign]
