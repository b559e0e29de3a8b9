# SPDX-License-Identifier: GPL-2.0-or-later
"""What rigs of device models have in common: DMA held against three opinions, and tampering that is put right again.

While nothing is tampered with, every access is also held against what software was asked to map: a stale translation
that both halves show then is software's fault.

Steps that make no sense where they stand (a context that is not there, an entry that the walk does not reach) do
nothing, so that any part of a program is a program.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from hypervisor.iommu.context import PciDevice
from machine.iommu.unit import Fault, IommuUnit, Walk
from machine.memory import PhysicalMemory
from oracle.lockstep import Access, Difference, Lockstep, Verdict, show
from oracle.software import Software

SOFTWARE_STEP: Final = "a step of software"
"""What a difference says that comes from a driver which reports a failure."""


class Wanted(NamedTuple):
    """What has to become of an access: the address it reaches, or the reasons for which it may be blocked."""

    maddr: int | None
    codes: tuple[int, ...] = ()

    def fits(self, answer: int | Fault) -> bool:
        return answer.code in self.codes if isinstance(answer, Fault) else answer == self.maddr

    def __str__(self) -> str:
        return f"reaches {self.maddr:#x}" if self.maddr is not None else f"blocked, reason {self.codes}"


class DeviceRig:
    """Base of the rigs.  ``hazards``: machine addresses that no probe may touch and no walk may read, for they are not
    the same RAM for the model and for us."""

    def __init__(
        self,
        memory: PhysicalMemory,
        ours: IommuUnit,
        unit: Lockstep,
        software: Software,
        hazards: Sequence[range],
    ) -> None:
        self.memory: Final = memory
        self.ours: Final = ours
        self.unit: Final = unit
        self.software: Final = software
        self.devices: Final = software.devices
        self.tally: Final = unit.tally
        self.differences: Final = unit.differences
        self.skipped = 0
        """Accesses that were not made because they would reach a hazard, or an entry of their own walk."""
        self.steps: dict[str, Callable[..., None]] = {
            "context": self._put_right_before(software.context),
            "free": self._put_right_before(software.free),
            "attach": self._put_right_before(software.attach),
            "detach": self._put_right_before(software.detach),
            "map": self._put_right_before(software.map),
            "unmap": self._put_right_before(software.unmap),
            "read": self.read,
            "write": self.write,
            "burst": self.burst,
            "flip": self.flip,
            "restore": self.restore,
            "forget": self.forget,
            "reaches": self.reaches,
            "faults": self.faults,
        }
        self.strayed = False
        """The model ever let an access through, or did not, against what software was asked for."""
        self._last: Access | None = None
        """The last access that a step of its own made."""
        self._hazards: Final = tuple(hazards)
        self._flips: dict[int, int] = {}
        """Bits that are flipped at the moment, by word index."""
        self._trusted = True
        """Nothing is flipped, and no cache can hold what a flip let in."""

    # What a subclass says.

    def wanted(self, device: PciDevice, iova: int, write: bool) -> Wanted:
        """What has to become of an access, following from what software was asked to do."""
        raise NotImplementedError

    def empty_caches(self) -> None:
        """Make both units forget everything that they may have cached."""
        raise NotImplementedError

    def walks(self, walk: Walk) -> list[Walk]:
        """Our walk, and those that the model may do instead by its known deviations."""
        return [walk]

    def goals(self, walks: Sequence[Walk]) -> list[int]:
        """Machine addresses that an access with these walks may reach."""
        return [walk.maddr for walk in walks if walk.maddr is not None]

    # Parts for subclasses.

    def sid(self, which: int) -> int:
        """Requester id of a device."""
        return self.devices[which].sbdf & 0xFFFF

    def _put_right_before(self, action: Callable[..., None]) -> Callable[..., None]:
        """A step of software: whatever was tampered with is put right before it."""

        def step(*arguments: int) -> None:
            if not self._trusted:
                self.restore()
                self.forget()
            action(*arguments)
            for failure in self.software.failures:
                self.differences.append(Difference(SOFTWARE_STEP, "confirmed by hardware", failure))
            self.software.failures.clear()

        return step

    def _is_hazard(self, walk: Walk, goal: int) -> bool:
        return any(goal in hazard for hazard in self._hazards) or _meets_itself(walk, goal)

    def _reads_hazard(self, walk: Walk) -> bool:
        return any(step.maddr in hazard for step in walk.steps for hazard in self._hazards)

    # Steps: DMA.

    def read(self, which: int, iova: int) -> None:
        """A device reads."""
        self.access(which, iova, False)

    def write(self, which: int, iova: int) -> None:
        """A device writes."""
        self.access(which, iova, True)

    def burst(self, *accesses: int) -> None:
        """Accesses of several devices at the same moment: device, address and 1 for a write, for each.

        Those that will be blocked come one by one before the others: their reports would mix.
        """
        together = []
        places: set[int] = set()
        asked: set[int] = set()
        for which, iova, write in zip(accesses[::3], accesses[1::3], accesses[2::3]):
            if which >= len(self.devices):
                continue
            sid = self.sid(which)
            walk = self.ours.walk(sid, iova, bool(write))
            if sid not in asked and walk.maddr not in places and self._surely_passes(which, walk):
                asked.add(sid)
                places |= {walk.maddr + offset for offset in range(-7, 8)} if walk.maddr is not None else set()
                together.append((sid, iova, bool(write), walk))
            else:
                self.access(which, iova, bool(write))
        if together:
            self.unit.together(together)

    def _surely_passes(self, which: int, walk: Walk) -> bool:
        """Whether an access passes, to RAM, without looking at anything but the walk."""
        goal = walk.maddr
        return (
            self._trusted
            and goal is not None
            and goal + 8 <= self.memory.size
            and not self._is_hazard(walk, goal)
            and self.wanted(self.devices[which], walk.iova, walk.write).maddr == goal
        )

    def access(self, which: int, iova: int, write: bool) -> None:
        """One access through both halves, compared with each other and with what software was asked to map."""
        if which >= len(self.devices):
            return
        sid = self.sid(which)
        walk = self.ours.walk(sid, iova, write)
        walks = self.walks(walk)
        if any(map(self._reads_hazard, walks)) or any(self._is_hazard(walk, goal) for goal in self.goals(walks)):
            self.skipped += 1
            self._last = None
            return
        access = self._last = self.unit.access(sid, iova, write, walk)
        if self._trusted:
            wanted = self.wanted(self.devices[which], iova, write)
            self.strayed = self.strayed or (
                wanted.maddr is not None if isinstance(access.model, Fault) else access.model != wanted.maddr
            )
            got = access.ours if self.unit.verdict is Verdict.EXCUSED else access.model
            if not wanted.fits(got):
                self.differences.append(Difference(f"{access}, as software was asked", str(wanted), show(got), access))

    def reaches(self, maddr: int) -> None:
        """The access before got there, in the model."""
        self._expect(Wanted(maddr))

    def faults(self, code: int) -> None:
        """The access before was blocked by the model, which recorded this reason; 0: it recorded nothing."""
        self._expect(Wanted(None, (code,)))

    def _expect(self, wanted: Wanted) -> None:
        access = self._last
        if access is None:
            self.differences.append(Difference("an access that was not made", str(wanted), "nothing", stated=True))
        elif not wanted.fits(access.model):
            self.differences.append(
                Difference(f"{access}, as the program states", str(wanted), show(access.model), access, stated=True)
            )

    # Steps: tampering.

    def flip(self, which: int, iova: int, place: int, bit: int) -> None:
        """Flip bit ``bit`` of the ``place``-th entry of a walk, tables of devices included; nothing is flushed."""
        if which >= len(self.devices):
            return
        steps = self.ours.walk(self.sid(which), iova, False).steps
        if place >= len(steps) or bit >= 64 * len(steps[place].words):
            return
        word = (steps[place].maddr >> 3) + (bit >> 6)
        self.memory.words[word] ^= 1 << (bit & 63)
        self._flips[word] = self._flips.get(word, 0) ^ 1 << (bit & 63)
        self._trusted = False

    def restore(self) -> None:
        """Flip back whatever is flipped, without a flush."""
        for word, bits in self._flips.items():
            self.memory.words[word] ^= bits
        self._flips.clear()

    def forget(self) -> None:
        """Empty every cache."""
        self.empty_caches()
        self._trusted = not self._flips


def _meets_itself(walk: Walk, goal: int) -> bool:
    """Whether the 8 bytes at ``goal`` are part of an entry that translates them: a probe there changes the answer."""
    return any(step.maddr - 8 < goal < step.maddr + 8 * len(step.words) for step in walk.steps)
