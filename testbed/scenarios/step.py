# SPDX-License-Identifier: GPL-2.0-or-later
"""One step of a scenario, and a scenario: what is done, what it answered, what is right, and the state after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from abi.errno import errno_name
from guest_driver.iommufd.release import Release


@dataclass(frozen=True, slots=True)
class Step:
    """``ok`` is False where the answer, or what was checked after it, is not what merged and mended code gives."""

    text: str
    answer: str
    ok: bool
    comment: str = ""
    state: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run: ``steps`` makes it on a place with a kernel release.  ``shows_flaw``: it ends well if a step is not ok."""

    name: str
    thread: str
    title: str
    steps: Callable[[str, Release], Iterator[Step]]
    verdict: str
    places: tuple[str, ...]
    shows_flaw: bool = False
    since: tuple[int, int] = (6, 6)
    """The first kernel that has what it needs."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Places where its subject cannot exist, with the reason."""


def answered(text: str, result: int, expected: int, comment: str = "", state: list[str] | None = None) -> Step:
    """A step whose result is 0 or -errno."""
    word = errno_name(result) if result >= 0 else f"-{errno_name(result)}"
    return Step(text, word, result == expected, comment, tuple(state or ()))


def held(text: str, holds: bool, comment: str = "", state: list[str] | None = None) -> Step:
    """A step that looks."""
    return Step(text, "yes" if holds else "NO", holds, comment, tuple(state or ()))
