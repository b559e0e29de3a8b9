# SPDX-License-Identifier: GPL-2.0-or-later
"""What a clause is, and how it says no."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from testbed.conformance.rig import Rig

Clause = Callable[["Rig"], None]
"""A claim (its docstring) about the subject in a rig; raises :class:`ConformanceError` if it does not hold."""


class ConformanceError(Exception):
    """The subject does not do what the clause claims; one line that says what it did instead."""


class Result(NamedTuple):
    """How one clause ended."""

    suite: str
    clause: str
    failure: str | None
    exempt: str | None = None
    """Why it was not asked, if it was not."""

    def __str__(self) -> str:
        if self.exempt is not None:
            return f"{self.suite}: {self.clause}: not asked: {self.exempt}"
        return f"{self.suite}: {self.clause}: {'holds' if self.failure is None else 'FAILS: ' + self.failure}"


def require(condition: object, complaint: str) -> None:
    """Raise :class:`ConformanceError` with ``complaint`` unless ``condition`` is true."""
    if not condition:
        raise ConformanceError(complaint)
