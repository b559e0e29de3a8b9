# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run of an oracle found, as values that can be printed or written as JSON."""

from dataclasses import dataclass, field, replace
from typing import Any

from machine.iommu.unit import Walk
from oracle.lockstep import Tally


@dataclass(frozen=True, slots=True)
class Finding:
    """One disagreement."""

    kind: tuple[str, ...]
    program: str
    """The shortest program that shows it."""
    steps: int
    shrunk_from: int
    differences: tuple[tuple[str, str, str], ...]
    """(what was done, what ours answered, what the model answered)."""
    problem: str
    """What a half raised, or how the model died; empty if they only answered differently."""
    our_walk: Walk | None
    model_walk: str
    """What the model told about it."""


@dataclass(slots=True)
class Outcome:
    """A run: what was compared and what differed."""

    oracle: str
    seed: int
    checked: int = 0
    """Accesses or translations whose outcome was compared."""
    seconds: float = 0.0
    """Time spent on them, machines' starts and shrinking aside."""
    machines: int = 0
    next: int = 0
    """Number of the first machine whose program was not run to its end: a run goes on from there."""
    interrupted: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    excused: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What could not be judged, and why."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Checked accesses a second."""
        return self.checked / self.seconds if self.seconds else 0.0

    def add(self, tally: Tally, seconds: float) -> None:
        """Count one more machine's comparisons."""
        self.machines += 1
        self.checked += tally.accesses
        self.seconds += seconds
        for name in ("passed", "faulted", "stale", "refreshed", "unseen", "registers"):
            self.counts[name] = self.counts.get(name, 0) + getattr(tally, name)
        for name, count in tally.excused.items():
            self.excused[name] = self.excused.get(name, 0) + count

    def with_running(self, tally: Tally) -> "Outcome":
        """A copy that counts a machine which is still at work."""
        return replace(self, checked=self.checked + tally.accesses)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "oracle": self.oracle,
            "seed": self.seed,
            "checked": self.checked,
            "seconds": round(self.seconds, 3),
            "rate": round(self.rate),
            "machines": self.machines,
            "next": self.next,
            "interrupted": self.interrupted,
            "counts": self.counts,
            "excused": self.excused,
            "notes": self.notes,
            "findings": [
                {
                    "kind": list(finding.kind),
                    "program": finding.program,
                    "steps": finding.steps,
                    "shrunk_from": finding.shrunk_from,
                    "differences": [
                        {"what": what, "ours": ours, "model": model} for what, ours, model in finding.differences
                    ],
                    "problem": finding.problem,
                    "our_walk": [
                        {
                            "name": step.name,
                            "maddr": step.maddr,
                            "words": list(step.words),
                            "meaning": step.meaning,
                        }
                        for step in (finding.our_walk.steps if finding.our_walk is not None else ())
                    ],
                    "model_walk": finding.model_walk,
                }
                for finding in self.findings
            ],
        }
