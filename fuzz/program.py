# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs: what a guest, its devices and the toolstack do, one operation per line.

One text is corpus entry, reproducer, bug report and regression test at once::

    # pviommu program 1
    bench backend=vtd profile=v7-fixed guest=pv contexts=4 arena=6
    alloc
    attach nic ctx=1
    map ctx=1 frame=ram:0 at=0x400 pages=256 access=rw
    dma nic at=0x400 pages=256
    unmap ctx=1 at=0x400 pages=1
    fail allocation=2
    remove frame=ram:17

``bench`` says what the program starts on.  Fields may come in any order and may be left out where the default is
meant; ``#`` starts a comment.  Numbers are decimal or hexadecimal.  A frame is ``ram:N`` (the guest's page N, whatever
its frame number is), ``d1:N`` (domain 1's), ``xen:N``, ``mmio:N``, ``rmrr:N`` (firmware's) or ``gfn:N`` (a number taken
as it is).
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Final

from abi.errno import errno_name, errno_number
from fuzz import machines
from fuzz.verbs import (
    ACCESS,
    ACCESS_NAMES,
    ANY_LEVEL,
    ARGUMENTS,
    DEFAULTS,
    DEVICES,
    DRIVER_VERBS,
    PAGE_SPACES,
    POSITIONAL,
    SIZE_NAMES,
    SIZES,
    SPACES,
    VERBS,
    WORDS,
    Field,
    Op,
    ProgramError,
    Value,
    op,
)
from guest_driver import drivers
from hypervisor import profile as profiles
from testbed import backends
from testbed.config import GUESTS, MOST_VCPUS

__all__ = [
    "ARGUMENTS",
    "DEFAULTS",
    "DEVICES",
    "VERBS",
    "Bench",
    "Field",
    "Op",
    "Program",
    "ProgramError",
    "Value",
    "format_bench",
    "format_op",
    "op",
    "parse",
    "parse_op",
]


MAGIC: Final = "# pviommu program 1"
MAX_OPS: Final = 100_000
LEVELS: Final = ("typed", "raw", "driver")
"""Hypercalls with fields, hypercalls as bytes, what a guest kernel asks of its IOMMU code.  The first two are written
in the same operations; they differ in what a generator makes of them."""
_WORDS_OF_BENCH: Final = ("backend", "profile", "guest", "defects", "against", "level", "driver", "known", "machine")


@dataclass(frozen=True, slots=True)
class Bench:
    """What a program starts on."""

    backend: str = "vtd"
    profile: str = "v7-fixed"
    guest: str = "pv"
    contexts: int | None = 4
    """Contexts that PV-IOMMU was initialised with; ``None``: it was not (versions without init have 255 regardless)."""
    arena: int = 6
    """log2 of the arena's pages."""
    seed: int = 0
    """Decides where the guest's pages lie."""
    iotlb: int | None = None
    """Entries that the IOTLB keeps; ``None``: every one until it is invalidated."""
    defects: str = ""
    """Ids of catalogued defects to switch on, joined by commas."""
    level: str = "typed"
    """What the program is written in: one of :data:`LEVELS`."""
    driver: str = "reference"
    """At driver level: a name in :mod:`guest_driver.drivers`."""
    known: str = ""
    """Faults that are not held against the hypervisor: clause/verb/errno, joined by commas (:mod:`fuzz.resync`)."""
    vcpus: int = 1
    """Of the guest; more than one: see :mod:`fuzz.concurrent`."""
    against: str = ""
    """A second machine that must agree: the name of another backend or profile."""
    machine: str = machines.USUAL
    """What the machine is like: a name in :mod:`fuzz.machines`."""


@dataclass(frozen=True, slots=True)
class Program:
    """A bench and what happens on it."""

    bench: Bench
    ops: tuple[Op, ...]

    def __str__(self) -> str:
        return "\n".join([MAGIC, format_bench(self.bench), *map(format_op, self.ops)]) + "\n"


# --------------------------------------------------------------------------------------------------------- printing


def format_bench(bench: Bench) -> str:
    words = ["bench"]
    for field in fields(Bench):
        value = getattr(bench, field.name)
        if field.name in ("backend", "profile", "guest", "contexts", "arena") or value != field.default:
            words.append(f"{field.name}={'none' if value is None else value}")
    return " ".join(words)


def format_op(operation: Op) -> str:
    """One line."""
    verb = str(operation[0])
    words = [verb]
    positional = POSITIONAL.get(verb)
    for field, value in zip(VERBS[verb], operation[1:]):
        if field.name == positional:
            words.append(str(value))
        elif value != field.default:
            words.append(f"{field.name}={_format(field.kind, value)}")
    return " ".join(words)


def _format(kind: str, value: Value) -> str:
    if isinstance(value, tuple):
        space, number = value
        return f"{space}:{number if number < 4096 else hex(number)}"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str):
        return value
    if kind == "errno":
        return errno_name(value)
    if kind == "count":
        return str(value)
    names = SIZE_NAMES if kind == "size" else ACCESS_NAMES if kind == "access" else {}
    return names.get(value) or f"{value:#x}"


# ---------------------------------------------------------------------------------------------------------- parsing

_SHAPES: Final = {
    "plan": (r"[a-z-]+:[0-9]{1,6}\+?(,[a-z-]+:[0-9]{1,6}\+?)*", "plan of faults, as arena:3,confirm:2+"),
    "schedule": (r"[0-9]{1,6}>[0-9]{1,2}(,[0-9]{1,6}>[0-9]{1,2})*", "schedule, as 4>1,9>0"),
    "frames": (r"(near|far)(\+[0-9]{1,4})?", "run of frames: near or far, perhaps with +N"),
    "pieces": (r"[0-9]{1,4}(\+[0-9]{1,4})?:[0-9]{1,7}(,[0-9]{1,4}(\+[0-9]{1,4})?:[0-9]{1,7}){0,31}", "list of pieces"),
}
"""By kind: (regular expression, what it is): frames ``near+3`` begin with the fourth of those that are neighbours in
machine memory; a piece is ``page:pages`` for the IOMMU core, ``page+offset:bytes`` for the DMA API."""


def parse(text: str) -> Program:
    """The program that ``text`` is; :class:`ProgramError` names the line."""
    lines = text.splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise ProgramError(f"line 1: not a program of pviommu (its first line is {MAGIC!r})")
    bench: Bench | None = None
    ops: list[Op] = []
    for number, line in enumerate(lines[1:], 2):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            if bench is None:
                bench = _parse_bench(words)
            else:
                ops.append(parse_op(words, bench))
        except ProgramError as error:
            raise ProgramError(f"line {number}: {error}") from None
        if len(ops) > MAX_OPS:
            raise ProgramError(f"line {number}: more than {MAX_OPS} operations")
    if bench is None:
        raise ProgramError("no line that starts with 'bench'")
    named = [operation[1] + 1 for operation in ops if operation[0] == "vcpu"]
    if named and bench.vcpus == 1:
        bench = replace(bench, vcpus=max(2, *named))
    return Program(bench, tuple(ops))


def _parse_bench(words: list[str]) -> Bench:
    if words[0] != "bench":
        raise ProgramError(f"the first operation is 'bench ...', not {words[0]!r}")
    values: dict[str, int | str | None] = {}
    known = {field.name for field in fields(Bench)}
    for word in words[1:]:
        name, equals, text = word.partition("=")
        if not equals or name not in known or name in values:
            raise ProgramError(f"{_quoted(word)} is not one of {', '.join(sorted(known))}=value, each once")
        if name in _WORDS_OF_BENCH:
            values[name] = text
        else:
            values[name] = None if text == "none" and name in ("contexts", "iotlb") else _number(text)
    bench = Bench(**values)  # type: ignore[arg-type]
    if not 1 <= bench.vcpus <= MOST_VCPUS:
        raise ProgramError(f"{bench.vcpus} vCPUs: it takes 1 to {MOST_VCPUS}")
    for what, value, among in (
        ("backend", bench.backend, backends.names()),
        ("profile", bench.profile, profiles.names()),
        ("guest", bench.guest, GUESTS),
        ("level", bench.level, LEVELS),
    ):
        if value not in among:
            raise ProgramError(f"unknown {what} {_quoted(value)}; there are: {', '.join(among)}")
    try:
        drivers.get(bench.driver)
        machines.get(bench.machine)
    except ValueError as error:
        raise ProgramError(str(error)) from None
    if bench.level == "driver" and bench.machine != machines.USUAL:
        raise ProgramError(f"machine={bench.machine} is for hypercalls; at driver level the machine is the usual one")
    return bench


def parse_op(words: list[str], bench: Bench | None = None) -> Op:
    """One operation from its words; ``bench``: where it is to run, if that is known."""
    verb = words[0]
    if verb not in VERBS:
        raise ProgramError(f"unknown operation {_quoted(verb)}; there are: {', '.join(VERBS)}")
    values: dict[str, Value] = {}
    kinds = {field.name: field.kind for field in VERBS[verb]}
    for word in words[1:]:
        name, equals, text = word.partition("=")
        if not equals:
            name, text = POSITIONAL.get(verb, ""), word
        if name not in kinds:
            raise ProgramError(f"{verb} has no field {_quoted(name or word)}; it has {', '.join(kinds)}")
        if name in values:
            raise ProgramError(f"{name} is given twice")
        values[name] = _parse(kinds[name], text)
    if bench is not None and (verb in DRIVER_VERBS) != (bench.level == "driver") and verb not in ANY_LEVEL:
        raise ProgramError(f"{verb} is no operation of {bench.level!r} level")
    if verb == "vcpu" and int(str(values.get("number", 0))) >= MOST_VCPUS:
        raise ProgramError(f"vCPUs are numbered 0 to {MOST_VCPUS - 1}")
    if verb in ("remove", "p2m") and not _removable(values.get("frame", ("ram", 8))):
        raise ProgramError(
            "only pages of domains from number 8 on can be taken away or changed; those below hold arguments"
        )
    return op(verb, **values)


def _removable(frame: Value) -> bool:
    return isinstance(frame, tuple) and frame[0] in PAGE_SPACES and frame[1] >= 8


def _parse(kind: str, text: str) -> Value:
    if kind == "frame":
        space, colon, number = text.partition(":")
        if not colon or space not in SPACES:
            raise ProgramError(f"{_quoted(text)} is no frame: {', '.join(SPACES)}, a colon and a number")
        return (space, _number(number))
    if kind in WORDS:
        if text not in WORDS[kind]:
            raise ProgramError(f"unknown {kind} {_quoted(text)}; there are: {', '.join(WORDS[kind])}")
        return text
    if kind in _SHAPES:
        shape, what = _SHAPES[kind]
        if not re.fullmatch(shape, text):
            raise ProgramError(f"{_quoted(text)} is no {what}")
        return text
    if kind == "errno":
        try:
            return -errno_number(text)
        except ValueError as error:
            raise ProgramError(str(error)) from None
    if kind == "bytes":
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise ProgramError(f"{_quoted(text)} is not bytes in hexadecimal") from None
    names = SIZES if kind == "size" else ACCESS if kind == "access" else {}
    return names[text] if text in names else _number(text)


def _quoted(text: object) -> str:
    """A word for a message, and no more of it than shows which one is meant."""
    word = str(text)
    return repr(word if len(word) <= 60 else f"{word[:60]}...")


def _number(text: str) -> int:
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}|[0-9]{1,20}", text):
        raise ProgramError(f"{_quoted(text)} is not a number")
    return int(text, 0) if text.startswith("0x") else int(text)
