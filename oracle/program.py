# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs: lists of steps, one line of text each, that are generated, shrunk, printed and replayed.

A line is a word and integers; ``#`` starts a comment.  The first line, ``machine`` and integers, says which machine
to start; what its integers and the other words mean is the business of the rig that runs the program.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

MACHINE: Final = "machine"


class Step(NamedTuple):
    """One line."""

    word: str
    arguments: tuple[int, ...]

    def __str__(self) -> str:
        return " ".join((self.word, *(str(n) if abs(n) < 100 else f"{n:#x}" for n in self.arguments)))


class ProgramError(ValueError):
    """A text that is no program; says which line and why."""


def step(word: str, *arguments: int) -> Step:
    return Step(word, arguments)


def to_text(program: Iterable[Step]) -> str:
    """One line each."""
    return "".join(f"{line}\n" for line in program)


def from_text(text: str) -> list[Step]:
    """The steps of ``text``; :class:`ProgramError` for a line that has something else than integers after its word."""
    program = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            program.append(Step(words[0], tuple(int(word, 0) for word in words[1:])))
        except ValueError:
            raise ProgramError(f"line {number}: {line.strip()!r} is not a word and integers") from None
    if not program or program[0].word != MACHINE:
        raise ProgramError(f"the first line of a program says which machine it runs on: {MACHINE} ...")
    return program


class Directed(NamedTuple):
    """A program with a purpose."""

    name: str
    about: str
    program: tuple[Step, ...]


def directed(name: str, about: str, text: str) -> Directed:
    return Directed(name, about, tuple(from_text(text)))
