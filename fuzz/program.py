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
its frame number is), ``xen:N``, ``mmio:N``, ``rmrr:N`` (firmware's) or ``gfn:N`` (a number taken as it is).
"""

import re
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

from base.units import make_sbdf
from hypervisor import profile as profiles
from testbed import backends
from testbed.build import COPIER, NIC, ROGUE
from testbed.config import GUESTS

MAGIC: Final = "# pviommu program 1"
MAX_OPS: Final = 100_000

Value = int | str | bytes | tuple[str, int]
Op = tuple[Any, ...]
"""(verb, value of each of the verb's fields in the order of :data:`VERBS`)."""

DEVICES: Final = {
    "nic": int(NIC),
    "copier": int(COPIER),
    "rogue": int(ROGUE),
    "port": int(make_sbdf(0, 0, 0x1C, 0)),
    "bridge": int(make_sbdf(0, 0, 0, 0)),
    "foreign": 0xFFFF,
}
"""Name to segment << 16 | bus << 8 | devfn; the domain has no ``foreign`` device."""
SPACES: Final = ("ram", "xen", "mmio", "rmrr", "gfn")
ARGUMENTS: Final = ("plain", "split", "readonly", "unmapped", "noncanonical")
"""Where a call's struct lies: in one page; across two pages; in a page that the guest may not write; nowhere."""
_SIZES: Final = {"4K": 0x1000, "2M": 0x20_0000, "1G": 0x4000_0000}
_SIZE_NAMES: Final = {value: name for name, value in _SIZES.items()}
_ACCESS: Final = {"none": 0, "r": 1, "w": 2, "rw": 3}
_ACCESS_NAMES: Final = {value: name for name, value in _ACCESS.items()}


class ProgramError(ValueError):
    """A text that is no program; one line that says where and why."""


class Field(NamedTuple):
    """One field of a verb: its name, how it is written, and what it is when left out (``None``: it may not be)."""

    name: str
    kind: str
    default: Value | None = None


_ARG: Final = (Field("arg", "argument", "plain"), Field("holes", "count", 0))
VERBS: Final[dict[str, tuple[Field, ...]]] = {
    "noop": _ARG,
    "query": _ARG,
    "init": (Field("contexts", "count"), Field("arena", "count"), *_ARG),
    "alloc": (Field("flags", "hex", 0), *_ARG),
    "free": (Field("ctx", "count"), Field("flags", "hex", 0), *_ARG),
    "attach": (Field("device", "device"), Field("ctx", "count"), Field("pasid", "hex", 0), *_ARG),
    "map": (
        Field("ctx", "count"),
        Field("frame", "frame"),
        Field("at", "hex"),
        Field("pages", "count", 1),
        Field("access", "access", 3),
        Field("size", "size", 0x1000),
        *_ARG,
    ),
    "unmap": (
        Field("ctx", "count"),
        Field("at", "hex"),
        Field("pages", "count", 1),
        Field("size", "size", 0x1000),
        *_ARG,
    ),
    "lookup": (Field("ctx", "count"), Field("at", "hex"), *_ARG),
    "raw": (Field("subop", "hex"), Field("bytes", "bytes", b""), Field("arg", "argument", "plain")),
    "dma": (Field("device", "device"), Field("at", "hex"), Field("pages", "count", 1)),
    "remove": (Field("frame", "frame"),),
    "fail": (Field("allocation", "count"),),
    "preempt": (Field("pattern", "hex"),),
}
"""Every operation.  ``dma``: the device reads and writes pages from ``at``; ``remove``: the toolstack takes a page from
the guest; ``fail``: that allocation from now on (1: the next) finds no memory; ``preempt``: from now on the vCPU is
wanted elsewhere wherever the next bit of the pattern, lowest first and over again, says so (0: never)."""
POSITIONAL: Final = {"attach": "device", "dma": "device"}
"""Fields that are written without their name."""
DEFAULTS: Final = {verb: tuple(field.default for field in fields_) for verb, fields_ in VERBS.items()}
_INDEX: Final = {verb: {field.name: k for k, field in enumerate(fields_)} for verb, fields_ in VERBS.items()}


def op(verb: str, **values: Value) -> Op:
    """An operation from named fields; the others have their defaults."""
    known = _INDEX[verb]
    row = list(DEFAULTS[verb])
    for name, value in values.items():
        row[known[name]] = value
    missing = [field.name for field, value in zip(VERBS[verb], row) if value is None]
    if missing:
        raise ProgramError(f"{verb} needs {missing[0]}")
    return (verb, *row)


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
    against: str = ""
    """A second machine that must agree: the name of another backend or profile."""


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
    if kind == "count":
        return str(value)
    names = _SIZE_NAMES if kind == "size" else _ACCESS_NAMES if kind == "access" else {}
    return names.get(value) or f"{value:#x}"


# ---------------------------------------------------------------------------------------------------------- parsing


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
                ops.append(parse_op(words))
        except ProgramError as error:
            raise ProgramError(f"line {number}: {error}") from None
        if len(ops) > MAX_OPS:
            raise ProgramError(f"line {number}: more than {MAX_OPS} operations")
    if bench is None:
        raise ProgramError("no line that starts with 'bench'")
    return Program(bench, tuple(ops))


def _parse_bench(words: list[str]) -> Bench:
    if words[0] != "bench":
        raise ProgramError(f"the first operation is 'bench ...', not {words[0]!r}")
    values: dict[str, int | str | None] = {}
    known = {field.name for field in fields(Bench)}
    for word in words[1:]:
        name, equals, text = word.partition("=")
        if not equals or name not in known or name in values:
            raise ProgramError(f"{word!r} is not one of {', '.join(sorted(known))}=value, each once")
        if name in ("backend", "profile", "guest", "defects", "against"):
            values[name] = text
        else:
            values[name] = None if text == "none" and name in ("contexts", "iotlb") else _number(text)
    bench = Bench(**values)  # type: ignore[arg-type]
    for what, value, among in (
        ("backend", bench.backend, backends.names()),
        ("profile", bench.profile, profiles.names()),
        ("guest", bench.guest, GUESTS),
    ):
        if value not in among:
            raise ProgramError(f"unknown {what} {value!r}; there are: {', '.join(among)}")
    return bench


def parse_op(words: list[str]) -> Op:
    """One operation from its words."""
    verb = words[0]
    if verb not in VERBS:
        raise ProgramError(f"unknown operation {verb!r}; there are: {', '.join(VERBS)}")
    values: dict[str, Value] = {}
    kinds = {field.name: field.kind for field in VERBS[verb]}
    for word in words[1:]:
        name, equals, text = word.partition("=")
        if not equals:
            name, text = POSITIONAL.get(verb, ""), word
        if name not in kinds:
            raise ProgramError(f"{verb} has no field {name or word!r}; it has {', '.join(kinds)}")
        if name in values:
            raise ProgramError(f"{name} is given twice")
        values[name] = _parse(kinds[name], text)
    if verb == "remove" and not _removable(values.get("frame", ("ram", 8))):
        raise ProgramError("only the guest's pages from ram:8 on can be removed; those below hold arguments")
    return op(verb, **values)


def _removable(frame: Value) -> bool:
    return isinstance(frame, tuple) and frame[0] == "ram" and frame[1] >= 8


def _parse(kind: str, text: str) -> Value:
    if kind == "frame":
        space, colon, number = text.partition(":")
        if not colon or space not in SPACES:
            raise ProgramError(f"{text!r} is no frame: {', '.join(SPACES)}, a colon and a number")
        return (space, _number(number))
    if kind in ("device", "argument"):
        among = DEVICES if kind == "device" else ARGUMENTS
        if text not in among:
            raise ProgramError(f"unknown {kind} {text!r}; there are: {', '.join(among)}")
        return text
    if kind == "bytes":
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise ProgramError(f"{text!r} is not bytes in hexadecimal") from None
    names = _SIZES if kind == "size" else _ACCESS if kind == "access" else {}
    return names[text] if text in names else _number(text)


def _number(text: str) -> int:
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}|[0-9]{1,20}", text):
        raise ProgramError(f"{text!r} is not a number")
    return int(text, 0) if text.startswith("0x") else int(text)
