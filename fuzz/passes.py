# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call of several vCPUs is made of: *passes*, each a critical section of its own.

A call that is preempted lets everything go, and other vCPUs' calls may come before it is issued again.  So it is no
atomic operation; its passes are, and each has an answer of its own: the one of the call for the last, and for those
before how far the call says that it got.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from fuzz.linearize import Call
from hypervisor.domain import Vcpu
from hypervisor.errors import HostStopped
from hypervisor.xen import Xen
from testbed.schedule import Chooser, Point, Run, Schedule
from testbed.schedule.schedule import default_choice

_RESULT: Final = "result"
"""Stands for what the call answered."""
_SECTIONED: Final = frozenset(("destroy_domain",))
"""Items that hold nothing while they go from one step to the next: each critical section is a pass, and so is what is
done between two of them."""


class Pauses:
    """The points at which a pass is over, and where the next one, if there is one, begins."""

    def __init__(self, xen: Xen, vcpus: Sequence[Vcpu]) -> None:
        self._xen: Final = xen
        self._vcpus: Final = vcpus
        self._item: Final[dict[int, str]] = {}

    def said(self, point: Point) -> object | None:
        """What the pass that ends at ``point`` answered; ``None``: none does."""
        if point.kind == "call":
            self._item[point.vcpu] = point.what
        if point.kind in ("call", "end"):
            return _RESULT
        vcpu = self._vcpus[point.vcpu]
        if point.kind == "pass":
            return "preempted", vcpu.restart
        locks = self._xen.locks
        section = point.kind in ("acquire", "release") and self._item.get(point.vcpu) in _SECTIONED
        return "holds nothing" if section and locks is not None and not locks.held_by(vcpu) else None


class _Whatever:
    """Equal to every answer."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


WHATEVER: Final = _Whatever()
"""The answer of a device's access amid somebody's pass.  Each page may be met as it was before the pass or as it is
after it, the one from a cache and the other from the table: an access is no call, and nobody promised it an order."""


class WantedElsewhere:
    """Whether a vCPU is wanted elsewhere when the hypervisor asks: each has the pattern for itself, lowest bit first,
    so that the answers do not depend on what others are asked."""

    def __init__(self, pattern: int) -> None:
        self._pattern: Final = pattern
        self._asked: Final[Counter[Vcpu]] = Counter()

    def __call__(self, vcpu: Vcpu) -> bool:
        bit = self._asked[vcpu] % self._pattern.bit_length()
        self._asked[vcpu] += 1
        return bool(self._pattern >> bit & 1)

    def restart(self) -> None:
        """Nobody has been asked."""
        self._asked.clear()


class Heard:
    """A chooser overheard: what it decided is known even if the run ends in an exception."""

    def __init__(self, chooser: Chooser, pauses: Pauses) -> None:
        self._chooser: Final = chooser
        self._pauses: Final = pauses
        self.points: Final[list[Point]] = []
        self.runnable: Final[list[tuple[int, ...]]] = []
        self.said: Final[dict[int, object]] = {}
        """By step at which a pass ended: what it answered (:meth:`Pauses.said`)."""
        self._switches: Final[list[tuple[int, int]]] = []

    def choose(self, point: Point, runnable: Sequence[int]) -> int:
        said = self._pauses.said(point)
        if said is not None:
            self.said[point.step] = said
        chosen = self._chooser.choose(point, runnable)
        self.points.append(point)
        self.runnable.append(tuple(runnable))
        if chosen != default_choice(point, runnable):
            self._switches.append((point.step, chosen))
        return chosen

    @property
    def schedule(self) -> Schedule:
        return Schedule(tuple(self._switches))


class OrderDone(HostStopped):
    """The passes of an order are done, or one of them cannot begin."""


class PassByPass:
    """Whole passes in a given order, and nothing behind the last of them."""

    def __init__(self, order: Sequence[int], pauses: Pauses) -> None:
        """``order``: whose pass it is, one after the other."""
        self._order: Final = order
        self._pauses: Final = pauses
        self._done = 0
        self._begun: Final[set[int]] = set()

    def choose(self, point: Point, runnable: Sequence[int]) -> int:
        """:class:`OrderDone` when there is no next pass: the run ends there."""
        if self._pauses.said(point) is None:
            if point.vcpu not in runnable:
                raise OrderDone(f"vCPU {point.vcpu} waits for what one between its passes has")
            return point.vcpu
        if point.vcpu in self._begun:
            self._done += 1
        elif point.kind != "end":
            self._begun.add(point.vcpu)
        if self._done == len(self._order) or self._order[self._done] not in runnable:
            raise OrderDone(f"{self._done} passes of {len(self._order)}")
        return self._order[self._done]


def passes_of(run: Run, said: Mapping[int, object]) -> list[list[Call]]:
    """By vCPU: the passes that came to their end, with the steps at which they began and ended, and what they answered
    (``said``: :attr:`Heard.said`)."""
    history: list[list[Call]] = [[] for _ in run.results]
    begun: dict[int, int] = {}
    calls: Counter[int] = Counter()
    item: dict[int, str] = {}
    amid: set[int] = set()
    """Who is within a pass."""
    for point in run.points:
        vcpu = point.vcpu
        if point.step not in said:
            amid.add(vcpu)
            continue
        amid.discard(vcpu)
        if vcpu in begun:
            answer = said[point.step]
            if answer == _RESULT:
                answer = run.results[vcpu][calls[vcpu]]
                calls[vcpu] += 1
            history[vcpu].append(Call(begun[vcpu], point.step, WHATEVER if amid and item[vcpu] == "dma" else answer))
        begun[vcpu] = point.step
        if point.kind == "call":
            item[vcpu] = point.what
    for vcpu, answers in enumerate(run.results):  # the last one to end comes to no further point
        if calls[vcpu] < len(answers):
            history[vcpu].append(Call(begun[vcpu], len(run.points), answers[calls[vcpu]]))
    return history
