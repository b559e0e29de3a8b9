# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of hypercalls as bytes (:mod:`fuzz.raw`), whatever level a bench asks for."""

from fuzz.engines.swarm import Swarm
from fuzz.mutate import Source
from fuzz.raw import RawGenerator
from fuzz.run import ProgramRunner, Runner


class Raw(Swarm):
    """Findings of one worker, over several benches in turn."""

    def _generator(self, runner: ProgramRunner, seed: int) -> Source:
        assert isinstance(runner, Runner)
        return RawGenerator(runner.target, seed)
