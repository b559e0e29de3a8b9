# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis state machines over the operations of programs: what CI runs under pytest-xdist.

The rules are typed operations; Hypothesis chooses, and shrinks what breaks.  A failure's steps are printed as a
program, which ``pviommu replay`` takes.  Contexts are bundles, so that rules mostly name those that exist.
"""

from typing import Any, ClassVar, Final

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule

from fuzz.program import Bench, Program
from fuzz.run import Runner
from fuzz.verbs import ARGUMENTS, Op

SWEEP_EVERY: Final = 8
"""Operations between two sweeps of the whole state; at the end there is one more."""
_DFNS: Final = st.one_of(
    st.integers(0x400, 0x40F),
    st.sampled_from((0x400, 0x5FF, 0x600, 0x7FF, 0x800, 0xBFF, 0xC00, 0, (1 << 36) - 1, (1 << 64) - 1)),
)
_PAGES: Final = st.one_of(st.integers(1, 8), st.sampled_from((0, 255, 256, 257, 511, 512)))
_FRAMES: Final = st.one_of(
    st.integers(8, 24).map(lambda page: ("ram", page)),
    st.sampled_from((("ram", 0), ("ram", 512), ("ram", 1500), ("xen", 3), ("mmio", 1), ("rmrr", 1), ("gfn", 1 << 40))),
)
_DEVICES: Final = st.sampled_from(("nic", "copier", "rogue"))
_ARGUMENT: Final = st.one_of(st.just("plain"), st.sampled_from(ARGUMENTS))
_RUNNERS: Final[dict[Bench, Runner]] = {}
"""Built once: a machine is reset, not rebuilt, between examples."""


class HypercallMachine(RuleBasedStateMachine):
    """Hypercalls and DMA on one machine under the oracle; a subclass names its bench."""

    bench: ClassVar[Bench] = Bench()
    contexts: Bundle[int] = Bundle("contexts")
    mapped: Bundle[tuple[int, int, int, tuple[str, int]]] = Bundle("mapped")
    """(context, dfn, pages, frame)."""

    def __init__(self) -> None:
        super().__init__()
        if self.bench not in _RUNNERS:
            _RUNNERS[self.bench] = Runner(self.bench)
        self._runner: Final = _RUNNERS[self.bench]
        self._ops: Final[list[Op]] = []
        self._broken = False
        self._runner.begin()

    def do(self, *operation: Any) -> str:
        """One operation; the program so far is printed if it breaks a clause."""
        self._ops.append(operation)
        answer, broken = self._runner.step(operation, sweep=len(self._ops) % SWEEP_EVERY == 0)
        self._hold(broken)
        return answer

    def _hold(self, broken: Any) -> None:
        if broken is not None:
            self._broken = True
            note(str(Program(self.bench, tuple(self._ops))))
            raise AssertionError(str(broken))

    def teardown(self) -> None:
        if not self._broken:
            self._hold(self._runner.oracle.sweep())

    @initialize(target=contexts)
    def first(self) -> int:
        self.do("alloc", 0, "plain", 0)
        return 1

    @rule(target=contexts, argument=_ARGUMENT)
    def alloc(self, argument: str) -> Any:
        before = set(self._runner.oracle.shadow.spaces)
        self.do("alloc", 0, argument, 0)
        return multiple(*(set(self._runner.oracle.shadow.spaces) - before))

    @rule(number=consumes(contexts), flags=st.sampled_from((0, 1, 1, 2)))
    def free(self, number: int, flags: int) -> None:
        self.do("free", number, flags, "plain", 0)

    @rule(number=st.one_of(contexts, st.just(0)), device=_DEVICES, argument=_ARGUMENT)
    def attach(self, number: int, device: str, argument: str) -> None:
        self.do("attach", device, number, 0, argument, 0)

    @rule(
        target=mapped,
        number=contexts,
        frame=_FRAMES,
        dfn=_DFNS,
        pages=_PAGES,
        access=st.sampled_from((3, 3, 1, 2, 0, 8)),
        argument=_ARGUMENT,
    )
    def map(self, number: int, frame: tuple[str, int], dfn: int, pages: int, access: int, argument: str) -> Any:
        self.do("map", number, frame, dfn, pages, access, 0x1000, argument, 0)
        return number, dfn, pages, frame

    @rule(target=mapped, run=mapped, pages=_PAGES)
    def carry_on(self, run: tuple[int, int, int, tuple[str, int]], pages: int) -> Any:
        """Continue a run in both spaces: what becomes a superpage."""
        number, dfn, before, (space, frame) = run
        at, onwards = dfn + before & (1 << 64) - 1, (space, frame + before)
        self.do("map", number, onwards, at, pages, 3, 0x1000, "plain", 0)
        return number, at, pages, onwards

    @rule(run=mapped, skip=st.integers(0, 511), pages=_PAGES)
    def unmap(self, run: tuple[int, int, int, tuple[str, int]], skip: int, pages: int) -> None:
        number, dfn, before, _ = run
        at = dfn + skip % max(before, 1) & (1 << 64) - 1
        self.do("unmap", number, at, pages, 0x1000, "plain", 0)

    @rule(run=mapped, device=_DEVICES)
    def dma(self, run: tuple[int, int, int, tuple[str, int]], device: str) -> None:
        self.do("dma", device, run[1], max(run[2], 1))

    @rule(page=st.integers(8, 24))
    def remove(self, page: int) -> None:
        self.do("remove", ("ram", page))

    @rule(allocation=st.integers(0, 3), flush=st.integers(0, 2))
    def fail(self, allocation: int, flush: int) -> None:
        self.do("fail", allocation, flush)

    @rule(pattern=st.sampled_from((0, 1, 5, 6)))
    def preempt(self, pattern: int) -> None:
        self.do("preempt", pattern)


def machine(bench: Bench) -> type[HypercallMachine]:
    """The state machine on ``bench``; its ``TestCase`` is what pytest collects."""
    name = f"Hypercalls_{bench.backend}_{bench.profile}_{bench.guest}".replace("-", "_")
    return type(name, (HypercallMachine,), {"bench": bench})
