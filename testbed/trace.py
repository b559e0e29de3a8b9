# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened, as a text that can be run again.

One line a hypercall: the sub-op, its input fields by name, and after ``=`` what came back (the errno's name, and the
fields that the hypervisor wrote)::

    # pviommu trace 1
    # {"backend":"vtd","profile":"v7-fixed","guest":"pv","seed":0}
    map_pages ctx_no=3 gfn=0x1a07 dfn=0xfffff flags=0x1 pgsize=0x1000 nr_pages=1 mapped=0 = 0 mapped=1

The second line is the test bed's configuration as JSON: the fields of :class:`testbed.config.Config`, those that have
their default value left out.  Replaying issues the same calls on a test bed built from it and holds every answer
against the recorded one.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, TextIO

import msgspec

from abi.errno import errno_name
from testbed.build import TestBed, build
from testbed.config import Config
from testbed.guest import HypercallCall

MAGIC: Final = "# pviommu trace 1"
_SCRATCH: Final = 0x2000
"""Pseudo-physical address at which a replay puts its structs."""


class TraceError(Exception):
    """A trace that cannot be read or does not replay; one line that names the file and the line."""


@dataclass(frozen=True, slots=True)
class Line:
    """One recorded call."""

    number: int
    name: str
    given: dict[str, int]
    result: str
    returned: dict[str, int]


class TraceWriter:
    """Writes calls to ``stream`` as they happen; usable as the watcher of :class:`testbed.guest.ObservedHypercalls`."""

    def __init__(self, stream: TextIO, testbed: TestBed) -> None:
        self._stream: Final = stream
        self._abi: Final = testbed.xen.abi
        self.calls = 0
        stream.write(f"{MAGIC}\n# {msgspec.json.encode(_header(testbed)).decode()}\n")

    def __call__(self, call: HypercallCall) -> None:
        subop = self._abi.by_name.get(call.name)
        out = subop.codec.out if subop is not None and subop.codec is not None else ()
        given = "".join(f" {name}={_number(name, value)}" for name, value in call.before.items() if name not in out)
        returned = "".join(f" {name}={_number(name, call.after[name])}" for name in out if name in call.after)
        self._stream.write(f"{call.name}{given} = {errno_name(call.result)}{returned}\n")
        self.calls += 1

    def note(self, text: str) -> None:
        """A comment line."""
        self._stream.write(f"# {text}\n")


def read(path: Path) -> tuple[Config, list[Line]]:
    """The configuration and the calls of a trace; :class:`TraceError` names file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None
    lines = text.splitlines()
    if not lines or lines[0] != MAGIC:
        raise TraceError(f"{path}:1: not a trace of pviommu (its first line is {MAGIC!r})")
    config = _config(path, lines[1] if len(lines) > 1 else "")
    return config, list(_calls(path, lines[2:]))


def replay(path: Path, until: int | None = None) -> TestBed:
    """A fresh test bed after the trace's calls, or its first ``until``; every answer must be the recorded one."""
    config, lines = read(path)
    try:
        testbed = build(config)
    except ValueError as error:
        raise TraceError(f"{path}:2: {error}") from None
    for line in lines[:until]:
        _issue(path, testbed, line)
    return testbed


def _issue(path: Path, testbed: TestBed, line: Line) -> None:
    abi = testbed.xen.abi
    subop = abi.by_name.get(line.name)
    if subop is None:
        raise TraceError(f"{path}:{line.number}: {abi.name} has no sub-op {line.name!r}")
    codec = subop.codec
    if codec is not None:
        unknown = [name for name in line.given if name not in codec.fields]
        if unknown:
            raise TraceError(f"{path}:{line.number}: {line.name} has no field {unknown[0]!r}")
        try:
            testbed.ram.write(_SCRATCH, codec.encode(*(line.given.get(name, 0) for name in codec.fields)))
        except ValueError as error:
            raise TraceError(f"{path}:{line.number}: {error}") from None
    result = testbed.hypercalls.hypercall(
        abi.hypercall, *abi.registers(line.name, testbed.ram.linear(_SCRATCH) if codec is not None else 0)
    )
    got = codec.as_dict(testbed.ram.read(_SCRATCH, codec.size)) if codec is not None else {}
    differs = [name for name, value in line.returned.items() if got.get(name) != value]
    if errno_name(result) != line.result or differs:
        answer = " ".join([errno_name(result), *(f"{name}={_number(name, got[name])}" for name in line.returned)])
        raise TraceError(f"{path}:{line.number}: {line.name} now answers {answer}; recorded was {line.result}")


def _header(testbed: TestBed) -> dict[str, object]:
    """What the configuration says beyond the defaults; names are spelt out all the same."""
    values = msgspec.to_builtins(replace(testbed.config, guest=testbed.config.guest or testbed.backend.default_guest))
    defaults = msgspec.to_builtins(Config())
    always = ("backend", "profile", "guest", "seed")
    return {name: value for name, value in values.items() if name in always or value != defaults[name]}


def _config(path: Path, line: str) -> Config:
    try:
        values = msgspec.json.decode(line.removeprefix("# "), type=dict[str, object])
        unknown = [name for name in values if name not in {field.name for field in fields(Config)}]
        if unknown:
            raise ValueError(f"unknown setting {unknown[0]!r}")
        return msgspec.convert(values, Config)
    except (msgspec.MsgspecError, ValueError) as error:
        raise TraceError(f"{path}:2: {error}") from None


def _calls(path: Path, lines: Iterable[str]) -> Iterator[Line]:
    for number, text in enumerate(lines, 3):
        if not text.strip() or text.startswith("#"):
            continue
        left, equals, right = text.partition(" = ")
        words, answer = left.split(), right.split()
        if not equals or not words or not answer:
            raise TraceError(f"{path}:{number}: expected 'sub-op field=value ... = result', found {text!r}")
        yield Line(number, words[0], _fields(path, number, words[1:]), answer[0], _fields(path, number, answer[1:]))


def _fields(path: Path, number: int, words: list[str]) -> dict[str, int]:
    found = {}
    for word in words:
        match = re.fullmatch(r"(\w+)=(0x[0-9a-fA-F]+|\d+)", word)
        if match is None:
            raise TraceError(f"{path}:{number}: {word!r} is not field=number")
        found[match[1]] = int(match[2], 0)
    return found


def _number(name: str, value: int) -> str:
    """Counts in decimal, everything else in hexadecimal."""
    decimal = name in ("ctx_no", "nr_pages", "mapped", "unmapped", "max_ctx_no", "arena_order", "max_nr_pages")
    return str(value) if decimal else f"{value:#x}"
