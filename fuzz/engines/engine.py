# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign asks of an engine: choose programs, run them, say what was found.

An engine gets benches and a seed, builds a :class:`fuzz.run.Runner` for each bench, and decides which program is run
next.  Workers, shrinking, filing and live status are the campaign's; a new engine is a class and a line in
:data:`ENGINES`.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Final, Protocol

from fuzz.program import Bench
from fuzz.run import Finding, ProgramRunner
from testbed.build import TestBed

Hit = tuple[ProgramRunner, Finding]
"""What was found, and where it can be run again."""


class Engine(Protocol):
    """One worker's way of choosing programs."""

    @property
    def runners(self) -> Sequence[ProgramRunner]:
        """One for each bench."""

    @property
    def programs(self) -> int:
        """Run so far."""

    @property
    def ops(self) -> int:
        """Run so far."""

    def findings(self, seconds: float, max_ops: int | None = None) -> Iterator[Hit | None]:
        """After every program what was found, or ``None``; ends when the time or the operations are used up.

        Equal benches, seeds and ``max_ops`` give equal findings, however fast the machine is.
        """


Make = Callable[[list[Bench], int, Callable[[TestBed], None] | None], Engine]

ENGINES: Final[dict[str, tuple[str, str]]] = {
    "swarm": ("fuzz.engines.swarm:Swarm", "typed random programs, each with its own weights"),
    "greybox": ("fuzz.engines.greybox:Greybox", "programs made out of those that showed something new"),
    "raw": ("fuzz.engines.raw:Raw", "calls as bytes: encoded ones with damage, and noise"),
    "together": (
        "fuzz.engines.together:Together",
        "short programs of two vCPUs, under schedules with a preemption",
    ),
    "differential": ("fuzz.engines.differential:Differential", "typed programs on two machines that must agree"),
}
"""Name to (where its class is, what it does)."""


def make(name: str, over: list[Bench], seed: int, sabotage: Callable[[TestBed], None] | None = None) -> Engine:
    """The engine ``name`` over these benches; ``KeyError`` for a name that is none."""
    module, _, attribute = ENGINES[name][0].partition(":")
    build: Make = getattr(import_module(module), attribute)
    return build(over, seed, sabotage)
