# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a finding small: fewer operations, plainer fields, the same crash key."""

from collections.abc import Iterator
from typing import Final

from fuzz.run import Finding, ProgramRunner
from fuzz.verbs import VERBS, Op, ProgramError, Value

BUDGET: Final = 600
"""Runs that one shrink may take."""
PAIRS: Final = 16
"""Programs of so many operations are tried without any two of them."""


class Shrinker:
    """Shrinks what was found on ``runner``."""

    def __init__(self, runner: ProgramRunner, budget: int = BUDGET) -> None:
        self._runner: Final = runner
        self._left = budget
        self._tried: Final[set[tuple[Op, ...]]] = set()

    def shrink(self, finding: Finding) -> Finding:
        """The smallest finding with the same key that the budget finds."""
        best = self._remove(finding, max(len(finding.program.ops) // 2, 1))
        best = self._without_scarcity(best)
        while self._left > 0:
            smaller = self._fields(self._remove_pairs(self._remove(best, 2)))
            if smaller.program.ops == best.program.ops:
                break
            best = smaller
        return best

    def _try(self, ops: tuple[Op, ...], like: Finding) -> Finding | None:
        if self._left <= 0 or ops in self._tried:
            return None
        self._left -= 1
        self._tried.add(ops)
        try:
            found = self._runner.run(ops)
        except ProgramError:
            return None
        return found if found is not None and found.like(like) else None

    def _remove(self, best: Finding, size: int) -> Finding:
        """Leave ``size`` operations out at a time, then ever smaller pieces."""
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

    def _remove_pairs(self, best: Finding) -> Finding:
        """Leave two operations out that do not stand together: one that makes something and one that ends it."""
        count = len(best.program.ops)
        if count > PAIRS:
            return best
        for second in range(count - 1, 1, -1):
            for first in range(second - 1):
                ops = best.program.ops
                smaller = self._try((*ops[:first], *ops[first + 1 : second], *ops[second + 1 :]), best)
                if smaller is not None:
                    return self._remove_pairs(smaller)
        return best

    def _without_scarcity(self, best: Finding) -> Finding:
        """Say that an allocation fails, instead of using up all memory before."""
        ops = best.program.ops
        if best.errno != "ENOMEM" or any(operation[0] in ("fail", "fault") for operation in ops):
            return best
        for allocation in (1, 2):
            found = self._try((*ops[:-1], ("fail", allocation, 0), ops[-1]), best)
            if found is not None:
                smaller = self._remove(found, 2)
                return smaller if len(smaller.program.ops) <= len(ops) else best
        return best

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
        for plain in (8, number // 512 * 512, *_smaller(number)):
            if 8 <= plain < number:  # those below hold arguments
                yield (space, plain)
    elif isinstance(value, bytes):
        for k in range(len(value)):
            if value[k]:
                yield value[:k] + b"\0" + value[k + 1 :]
    elif isinstance(value, int) and kind in ("count", "hex"):
        for plain in (1, 2, 0x400, value // 512 * 512, *_smaller(value)):
            if 0 <= plain < value:
                yield plain


def _smaller(value: int) -> tuple[int, ...]:
    """Half of a number; of a small one also the one before (a large one would go down until the budget is used up)."""
    return (value // 2, value - 1) if value <= 16 else (value // 2,)
