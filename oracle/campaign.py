# SPDX-License-Identifier: GPL-2.0-or-later
"""Random programs against a device model until the time is up; what differs is shrunk and told with its replay.

A machine runs some thousand steps of one program and is then thrown away, so that the program that shows
a difference is complete: it starts with a machine out of reset.  Everything follows from the seed and the machine's
number, so a run that was interrupted goes on where it stopped.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from oracle.lockstep import STATED, Difference, Tally
from oracle.outcome import Finding, Outcome
from oracle.process import ModelDied
from oracle.program import Directed, Step, to_text
from oracle.shrink import shrink

STEPS_PER_MACHINE: Final = 6000
SHRINK_STEPS: Final = 50_000
"""Steps that shrinking one program may take: about a minute."""
MOST_FINDINGS: Final = 3


class Rig(Protocol):
    """A machine that takes steps."""

    @property
    def tally(self) -> Tally: ...

    @property
    def differences(self) -> list[Difference]: ...

    @property
    def steps(self) -> Mapping[str, Callable[..., None]]:
        """What each word of a program does."""
        ...

    def close(self) -> None: ...

    def model_words(self) -> str:
        """What the model printed so far."""
        ...


@dataclass(frozen=True, slots=True)
class ProgramOracle:
    """How to make machines and programs for one model."""

    name: str
    boot: Callable[[tuple[int, ...], bool], Rig]
    """A machine from the integers of a program's first line; ``True`` makes the model tell what it does."""
    directed: Callable[[], Sequence[Directed]]
    """Programs that every run starts with, as far as the model that is installed can run them."""
    generate: Callable[[random.Random], tuple[Step, Callable[[], list[Step]]]]
    """From a random generator: a program's first line, and what gives its next few steps."""
    notes: Callable[[], list[str]] = list
    """What the model that is installed cannot judge."""
    steps: int = STEPS_PER_MACHINE
    """How many of a program are run on one machine."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Which programs a run takes: those of ``seed`` from machine ``first`` on, until one of the two limits is met."""

    seed: int = 0
    first: int = 0
    """Machines before this one are left out, and if there are any, the directed programs as well."""
    seconds: float = math.inf
    probes: float = math.inf
    """Accesses or translations to check."""


class Mistake(ValueError):
    """A program has a step that the rig does not know, or with the wrong number of integers."""


def run(oracle: ProgramOracle, limits: Limits, progress: Callable[[Outcome], None]) -> Outcome:
    """Directed programs, then random ones up to the limits.  An interrupt ends the run; what is done counts."""
    outcome = Outcome(oracle.name, limits.seed, next=limits.first)
    outcome.notes += oracle.notes()
    deadline = time.monotonic() + limits.seconds

    def enough(running: Tally) -> bool:
        progress(outcome.with_running(running))
        return outcome.checked + running.accesses >= limits.probes or time.monotonic() >= deadline

    try:
        for one in oracle.directed() if not limits.first else ():
            _try(oracle, one.program[0], iter(one.program[1:]), outcome, lambda running: False)
        while len(outcome.findings) < MOST_FINDINGS and not enough(Tally()):
            first, scene = oracle.generate(random.Random(f"{oracle.name} {limits.seed} {outcome.next}"))
            if _try(oracle, first, _steps(scene, oracle.steps), outcome, enough):
                outcome.next += 1
    except KeyboardInterrupt:
        outcome.interrupted = True
    progress(outcome)
    return outcome


def replay(oracle: ProgramOracle, program: Sequence[Step]) -> Outcome:
    """One program as it stands, with the model's own account of its last access if it differs."""
    outcome = Outcome(oracle.name, 0)
    finding, tally, spent = _execute(oracle, program[0], iter(program[1:]))
    outcome.add(tally, spent)
    if finding is not None:
        outcome.findings.append(_tell(oracle, finding[0]))
    return outcome


def _steps(scene: Callable[[], list[Step]], most: int) -> Iterable[Step]:
    count = 0
    while count < most:
        steps = scene()
        count += len(steps)
        yield from steps


Failure = tuple[list[Step], tuple[str, ...]]
"""A program up to the step that showed a difference, and the kind of difference."""


def _try(
    oracle: ProgramOracle, first: Step, steps: Iterable[Step], outcome: Outcome, enough: Callable[[Tally], bool]
) -> bool:
    """Run a program until it is over or ``enough`` of it is; a difference is shrunk and becomes a finding.

    Whether it is over.
    """
    failure, tally, spent = _execute(oracle, first, steps, enough)
    outcome.add(tally, spent)
    if failure is None:
        return not enough(Tally())
    program, kind = failure
    if any(known.kind == kind for known in outcome.findings):
        return True

    def fails(candidate: Sequence[Step]) -> bool:
        again, _, _ = _execute(oracle, candidate[0], iter(candidate[1:]))
        return again is not None and again[1] == kind

    short = program if kind[0] == STATED else shrink(program, fails, SHRINK_STEPS)
    outcome.findings.append(_tell(oracle, short, len(program)))
    return True


def _execute(
    oracle: ProgramOracle, first: Step, steps: Iterable[Step], enough: Callable[[Tally], bool] = lambda tally: False
) -> tuple[Failure | None, Tally, float]:
    """Run steps on a fresh machine until one shows a difference; (failure, what was compared, seconds)."""
    rig = oracle.boot(first.arguments, False)
    history = [first]
    started = time.monotonic()
    differences = rig.differences
    failure: Failure | None = None
    try:
        for step in steps:
            history.append(step)
            problem = _take(rig, step)
            if differences or problem:
                failure = history, _kind(differences, problem)
                break
            if enough(rig.tally):
                break
        return failure, rig.tally, time.monotonic() - started
    finally:
        rig.close()


def _take(rig: Rig, step: Step) -> str:
    """Take one step; what went wrong inside a half, in one line, if something did."""
    action = rig.steps.get(step.word)
    if action is None:
        raise Mistake(f"there is no step {step.word!r}; there are: {', '.join(rig.steps)}")
    try:
        action(*step.arguments)
    except ModelDied as death:
        return f"model died: {death}"
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise Mistake(f"{step}: {error}") from None
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # whatever our halves raise is what this run is looking for
        return f"{type(error).__name__}: {error}"
    return ""


def _kind(differences: Sequence[Difference], problem: str) -> tuple[str, ...]:
    """What makes two failures the same one while a program is shrunk."""
    if problem:
        return ("problem", problem.partition(":")[0])
    return differences[0].kind


def _tell(oracle: ProgramOracle, program: Sequence[Step], length: int | None = None) -> Finding:
    """Run a failing program once more with the model talking, and describe what happens."""
    rig = oracle.boot(program[0].arguments, True)
    try:
        problem = ""
        said = 0
        for step in program[1:]:
            said = len(rig.model_words())
            problem = _take(rig, step)
            if rig.differences or problem:
                break
        differences = list(rig.differences)
        words = rig.model_words()[said:].strip()
    finally:
        rig.close()
    access = next((one.access for one in differences if one.access is not None), None)
    return Finding(
        kind=_kind(differences, problem) if differences or problem else ("vanished",),
        program=to_text(program),
        steps=len(program) - 1,
        shrunk_from=(length or len(program)) - 1,
        differences=tuple((one.what, one.ours, one.model) for one in differences),
        problem=problem,
        our_walk=access.walk if access is not None else None,
        model_walk=words,
    )
