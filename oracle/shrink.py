# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a failing program short: leave out what is not needed, larger pieces first."""

from collections.abc import Callable, Sequence
from typing import Final

from oracle.program import Step

START: Final = 300
"""What a machine's start costs, in steps."""
LATE: Final = (4, 12, 40, 200, 1000)
"""Before anything else, how many of the last steps might do."""


def shrink(program: Sequence[Step], fails: Callable[[Sequence[Step]], bool], most: int) -> list[Step]:
    """The shortest program found for which ``fails`` holds; its first line always stays.

    ``program`` itself fails, with its last step.  ``most``: steps to take in all, starts of machines (:data:`START`)
    included, so that the result does not depend on how fast the machine is.
    """
    left = most
    first, steps = program[0], list(program[1:])

    def still(candidate: Sequence[Step]) -> bool:
        nonlocal left
        left -= START + len(candidate)
        return left >= 0 and fails([first, *candidate])

    steps = _keep_late(steps, still)
    size = max(len(steps) // 2, 1)
    while size and left > 0:
        at = len(steps) - size
        removed = False
        while at > -size:
            candidate = steps[: max(at, 0)] + steps[at + size :]
            if len(candidate) < len(steps) and still(candidate):
                steps = candidate
                removed = True
            at -= size
        if not removed or size > len(steps):
            size //= 2
    return [first, *steps]


def _keep_late(steps: list[Step], still: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """The end of the program together with every step that made or attached something, if that is enough."""
    for count in LATE:
        if count >= len(steps):
            break
        candidate = [step for step in steps[:-count] if step.word in ("context", "attach")] + steps[-count:]
        if still(candidate):
            return candidate
    return steps
