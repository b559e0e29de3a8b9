# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a finding small: fewer operations, plainer fields, the same crash key."""

from collections.abc import Iterator
from typing import Final

from fuzz.run import Finding, ProgramRunner
from fuzz.verbs import VERBS, Op, ProgramError, Value

BUDGET: Final = 600
"""Runs that one shrink may take."""


class Shrinker:
    """Shrinks what was found on ``runner``."""

    def __init__(self, runner: ProgramRunner, budget: int = BUDGET) -> None:
        self._runner: Final = runner
        self._left = budget

    def shrink(self, finding: Finding) -> Finding:
        """The smallest finding with the same key that the budget finds."""
        best = finding
        while self._left > 0:
            smaller = self._fields(self._remove(best))
            if smaller.program.ops == best.program.ops:
                break
            best = smaller
        return best

    def _try(self, ops: tuple[Op, ...], like: Finding) -> Finding | None:
        if self._left <= 0:
            return None
        self._left -= 1
        try:
            found = self._runner.run(ops)
        except ProgramError:
            return None
        return found if found is not None and found.like(like) else None

    def _remove(self, best: Finding) -> Finding:
        """Leave operations out, large pieces first."""
        size = max(len(best.program.ops) // 2, 1)
        while True:
            end = len(best.program.ops)
            while end > 0:
                ops = best.program.ops
                start = max(end - size, 0)
                smaller = self._try(ops[:start] + ops[end:], best)
                if smaller is not None:
                    best = smaller
                    end = min(start, len(best.program.ops))
                else:
                    end = start
            if size == 1:
                return best
            size //= 2

    def _fields(self, best: Finding) -> Finding:
        """Make fields plainer, one at a time."""
        for k in range(len(best.program.ops)):
            if k >= len(best.program.ops):
                break
            for position, field in enumerate(VERBS[str(best.program.ops[k][0])], 1):
                for value in _plainer(field.kind, best.program.ops[k][position], field.default):
                    ops = best.program.ops
                    changed = (*ops[k][:position], value, *ops[k][position + 1 :])
                    found = self._try((*ops[:k], changed, *ops[k + 1 :]), best)
                    if found is not None:
                        best = found
                        break
                if k >= len(best.program.ops):
                    break
        return best


def _plainer(kind: str, value: Value, default: Value | None) -> Iterator[Value]:
    """Values that say less than ``value``, the plainest first."""
    if value == default:
        return
    if default is not None:
        yield default
    if isinstance(value, tuple):
        space, number = value
        for plain in (8, number // 512 * 512, number - 1):
            if 8 <= plain < number:  # those below hold arguments
                yield (space, plain)
    elif isinstance(value, bytes):
        for k in range(len(value)):
            if value[k]:
                yield value[:k] + b"\0" + value[k + 1 :]
    elif isinstance(value, int) and kind in ("count", "hex"):
        for plain in (1, 2, 0x400, value // 512 * 512, value // 2, value - 1):
            if 0 <= plain < value:
                yield plain
