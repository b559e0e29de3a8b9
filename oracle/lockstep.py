# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hardware halves behind one register block: software programs both and notices neither.

Every register write goes to both, every read is compared, every translation is asked of both.  RAM is the same bytes
for both.  What differs and is not a known deviation is noted as a :class:`Difference`; software goes on with the
model's answer, so that a run shows what a machine with that model inside would have done.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, NamedTuple, Protocol

from machine.iommu.unit import Counters, Fault, IommuUnit, Walk

STATED: Final = "stated"
"""The first word of the kind of such a difference."""


class Model(Protocol):
    """The hardware half that somebody else wrote."""

    @property
    def name(self) -> str: ...

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...

    def write_and_read(self, offset: int, size: int, value: int, then: Sequence[tuple[int, int]]) -> list[int]:
        """A write, and the registers ``then`` (offset, size) after it."""
        ...

    def probe(self, sid: int, iova: int, write: bool, expected: Sequence[int], guesses: Sequence[int]) -> int | Fault:
        """One access; ``expected`` are the machine addresses that a walk leads to, ``guesses`` others to look at."""
        ...

    def probe_together(self, accesses: Sequence[tuple[int, int, bool, int]]) -> list[bool] | None: ...

    @property
    def seen(self) -> bool:
        """Whether it was observed where the last access went, or only that it passed."""
        ...

    def discard(self) -> None:
        """Forget the fault that was recorded last."""
        ...

    def event(self) -> None:
        """Raise the fault interrupt, now that both halves have recorded the fault."""
        ...


class Blind(NamedTuple):
    """A walk as a model reads it that does not see certain bits, and the name of that deviation."""

    walk: Walk
    name: str


@dataclass(frozen=True, slots=True)
class Access:
    """One DMA as both halves answered it."""

    sid: int
    iova: int
    write: bool
    ours: int | Fault
    model: int | Fault
    walk: Walk
    """What our half reads from memory now, without any cache."""
    cached: bool
    """Our half answered from its translation cache."""
    blind: Blind | None
    """The walk as a model with known blind spots reads it, if that makes a difference."""

    def __str__(self) -> str:
        who = f"{self.sid >> 8:02x}:{self.sid >> 3 & 31:02x}.{self.sid & 7:x}"
        return f"DMA {'write' if self.write else 'read'} by {who} at {self.iova:#x}"


class Verdict(Enum):
    """How one access compares."""

    SAME = "same"
    FRESH = "the model had forgotten what ours still knew"
    EXCUSED = "a known deviation"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True)
class Deviation:
    """A place where a model is known to depart from its architecture.

    ``excuses`` says whether it explains one differing access; it must name the model's answer exactly.
    """

    name: str
    reason: str
    evidence: str
    excuses: Callable[[Access], bool]
    fixed_in: int = 1 << 30
    """Major version of the model that no longer has it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A disagreement: what was done, and what each half answered."""

    what: str
    ours: str
    model: str
    access: Access | None = None
    stated: bool = False
    """It is the program's own statement that does not hold, which means something only in that very program."""

    @property
    def kind(self) -> tuple[str, ...]:
        """What stays the same while the program that shows it is made shorter."""
        if self.stated:
            return (STATED, self.what)
        if self.access is None:
            return ("register", self.what.partition(" after ")[0])
        return ("access", str(self.access.write), _class(self.access.ours), _class(self.access.model))


@dataclass(slots=True)
class Tally:
    """What a lockstep run compared."""

    accesses: int = 0
    passed: int = 0
    faulted: int = 0
    stale: int = 0
    """Accesses that both halves answered from a cache although memory says something else by now."""
    refreshed: int = 0
    """Accesses that the model answered from memory where ours still knew an older answer."""
    unseen: int = 0
    """Accesses that passed, to somewhere that cannot be observed."""
    registers: int = 0
    excused: dict[str, int] = field(default_factory=dict)


def _class(answer: int | Fault) -> str:
    return f"{answer.code:#x}" if isinstance(answer, Fault) else "passes"


def show(answer: int | Fault) -> str:
    """An answer in words."""
    if isinstance(answer, Fault):
        words = " ".join(f"{word:#018x}" for word in answer.record)
        if not words and not answer.code:
            return "nothing arrived, nothing was recorded"
        return f"blocked, reason {answer.code:#x}" + (f", record {words}" if words else ", no record")
    return f"reaches {answer:#x}"


class Lockstep:
    """The unit that software sees.

    ``names`` are our half's names of fault codes; ``discard`` makes our half forget the fault it recorded last, for
    accesses on which the halves rightly differ.  ``watched`` lists, for a register offset, what is compared after each
    write there: (offset, size).  ``ignore(offset, size, value)`` are the bits of a register that mean nothing when the
    model's register holds ``value``; ``comparable`` does the same for a fault record.
    ``seen_by_model`` walks once more the way a model with known blind spots reads memory; ``None`` if there is none.
    ``astray`` says where else a model may go that takes a walk for longer or shorter than it is.
    """

    def __init__(
        self,
        ours: IommuUnit,
        model: Model,
        deviations: Sequence[Deviation],
        names: Mapping[int, str],
        discard: Callable[[], None],
        watched: Mapping[int, Sequence[tuple[int, int]]],
        ignore: Callable[[int, int, int], int] = lambda offset, size, value: 0,
        comparable: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda record: record,
        seen_by_model: Callable[[Walk], Blind | None] = lambda walk: None,
        astray: Callable[[Walk], int | None] = lambda walk: None,
    ) -> None:
        self.ours: Final = ours
        self.model: Final = model
        self.name: Final = f"{model.name} beside {ours.name}"
        self.register_size: Final = ours.register_size
        self.tally: Final = Tally()
        self.differences: Final[list[Difference]] = []
        self.verdict = Verdict.SAME
        """On the last access."""
        self._deviations: Final = tuple(deviations)
        self._names: Final = names
        self._discard: Final = discard
        self._watched: Final = dict(watched)
        self._ignore: Final = ignore
        self._comparable: Final = comparable
        self._seen_by_model: Final = seen_by_model
        self._astray: Final = astray

    @property
    def counters(self) -> Counters:
        return self.ours.counters

    # Registers.

    def read(self, offset: int, size: int) -> int:
        theirs = self.model.read(offset, size)
        mine = self.ours.read(offset, size)
        self.tally.registers += 1
        if theirs != mine and (theirs ^ mine) & ~self._ignore(offset, size, theirs):
            what = f"read of {size} bytes at register {offset:#x}"
            self.differences.append(Difference(what, f"{mine:#x}", f"{theirs:#x}"))
        return theirs

    def write(self, offset: int, size: int, value: int) -> None:
        watched = self._watched.get(offset)
        if watched is None:
            self.model.write(offset, size, value)
            self.ours.write(offset, size, value)
            return
        theirs = self.model.write_and_read(offset, size, value, watched)
        self.ours.write(offset, size, value)
        for (register, width), their in zip(watched, theirs):
            mine = self.ours.read(register, width)
            self.tally.registers += 1
            if mine != their and (mine ^ their) & ~self._ignore(register, width, their):
                what = f"register {register:#x} after {value:#x} was written to {offset:#x}"
                self.differences.append(Difference(what, f"{mine:#x}", f"{their:#x}"))

    # Translation.

    def access(self, sid: int, iova: int, write: bool, walk: Walk | None = None) -> Access:
        """One 8-byte access (inside a 4 KiB page) through both halves, compared.

        ``walk`` is what :meth:`walk` says of it, if the caller has asked already.
        """
        if walk is None:
            walk = self.ours.walk(sid, iova, write)
        hits = self.ours.counters.iotlb_hits
        mine = self.ours.translate(sid, iova, write)
        expected = [mine] if not isinstance(mine, Fault) else []
        blind = self._seen_by_model(walk)
        for other in (walk, blind.walk if blind is not None else walk):
            if other.maddr is not None and other.maddr not in expected:
                expected.append(other.maddr)
        elsewhere = self._astray(walk)
        guesses = [] if elsewhere is None or elsewhere in expected else [elsewhere]
        theirs = self.model.probe(sid, iova, write, expected, guesses)
        if not self.model.seen:
            self.tally.unseen += 1
        access = Access(sid, iova, write, mine, theirs, walk, self.ours.counters.iotlb_hits != hits, blind)
        self.verdict = self._judge(access)
        if self.verdict is Verdict.SAME:
            if isinstance(theirs, Fault) and theirs.record:
                self.model.event()
        else:
            self._discard()
            if isinstance(theirs, Fault) and theirs.record:
                self.model.discard()
        return access

    def together(self, accesses: Sequence[tuple[int, int, bool, Walk]]) -> None:
        """Accesses that pass according to their walks, all at the same moment; each requester occurs once.

        What does not come out as the walks say is asked again one by one, so that the answer can be told.
        """
        expected = []
        for sid, iova, write, walk in accesses:
            mine = self.ours.translate(sid, iova, write)
            if isinstance(mine, Fault) or mine != walk.maddr:
                self.differences.append(
                    Difference(f"{iova:#x}: our cache against our walk", str(mine), str(walk.maddr))
                )
                return
            expected.append((sid, iova, write, mine))
        arrived = self.model.probe_together(expected)
        if arrived is None:
            arrived = [False] * len(accesses)
        for (sid, iova, write, walk), good in zip(accesses, arrived):
            if good:
                self.tally.accesses += 1
                self.tally.passed += 1
            else:
                self.access(sid, iova, write, walk)

    def _judge(self, access: Access) -> Verdict:
        """Count the access and compare."""
        tally = self.tally
        tally.accesses += 1
        mine, theirs = access.ours, access.model
        if isinstance(mine, Fault) and isinstance(theirs, Fault):
            tally.faulted += 1
            same = self._comparable(mine.record) == self._comparable(theirs.record)
        else:
            tally.passed += 1
            same = mine == theirs
        if same:
            if not isinstance(mine, Fault) and mine != access.walk.maddr:
                tally.stale += 1
            return Verdict.SAME
        if self._is_fresh(access):
            tally.refreshed += 1
            return Verdict.FRESH
        excuse = self._excuse(access)
        if excuse is not None:
            tally.excused[excuse] = tally.excused.get(excuse, 0) + 1
            return Verdict.EXCUSED
        self.differences.append(Difference(str(access), show(mine), show(theirs), access))
        return Verdict.DIFFERENT

    def _excuse(self, access: Access) -> str | None:
        """The name of the deviation that explains an access, if one does."""
        candidates = [access]
        if access.blind is not None:
            walk = access.blind.walk
            if self._fits(access.model, walk):
                return access.blind.name
            code = next((number for number, name in self._names.items() if name == walk.blocked), None)
            if code is not None:  # another deviation may show in what the model sees
                fault = Fault(self.ours.name, access.sid, access.iova, access.write, code, self._names[code])
                candidates.append(replace(access, ours=fault, walk=walk))
        for candidate in candidates:
            for deviation in self._deviations:
                if deviation.excuses(candidate):
                    return deviation.name
        return None

    def _is_fresh(self, access: Access) -> bool:
        """Whether the model answered what memory says now; every cache may forget, so that is always right."""
        mine, theirs = access.ours, access.model
        if isinstance(theirs, Fault) and isinstance(mine, Fault) and mine.code == theirs.code:
            return False  # it is the records that differ
        return self._fits(theirs, access.walk)

    def _fits(self, answer: int | Fault, walk: Walk) -> bool:
        """Whether an answer is what a walk says: address, recorded reason, or silence where that has no number."""
        if not isinstance(answer, Fault):
            return answer == walk.maddr
        if not answer.record:
            return walk.blocked is not None and walk.blocked not in self._names.values()
        return walk.blocked is not None and walk.blocked == self._names.get(answer.code)

    def walk(self, sid: int, iova: int, write: bool = False) -> Walk:
        return self.ours.walk(sid, iova, write)
