# SPDX-License-Identifier: GPL-2.0-or-later
"""Golden records as files: JSON lines, and how they write frames.

``F<k>``, ``G<k>``, ``H<k>`` are frame ``k`` of a run of consecutive machine frames, ``arena+<k>`` page ``k`` of the
arena, ``=F<k>`` the device frame that context 0 maps one to one to that frame.  A run's base is recorded modulo 2^18;
which of the frames of that residue it is only matters for frames that the record writes as plain numbers.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from abi.errno import errno_name

RESIDUE: Final = 1 << 18
MAX_ARENA_ORDER: Final = 18
DEFAULT_CAPABILITIES: Final = "0xd2008c222f0606"
"""CAP of the unit that the records were made with."""
FIRST_BASE: Final = RESIDUE
"""Runs are placed in the second GiB unless a descriptor in the record says otherwise."""


KINDS: Final = frozenset({"boot", "note", "call", "state", "end"})


class RecordError(Exception):
    """A file that is no record; one line that names file and line."""


@dataclass(frozen=True, slots=True)
class Run:
    """``length`` machine frames from ``base``."""

    base: int
    length: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a record, numbered from 1."""

    number: int
    data: dict[str, Any]


class Record:
    """A record: the machine's description and what happened on it."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.lines: Final = list(_read(path))
        if not self.lines or self.lines[0].data.get("kind") != "boot":
            raise RecordError(f"{path}:1: not a golden record (its first line is no boot record)")
        self.boot: Final = self.lines[0].data
        for line in self.lines:
            _check(path, line)
        again = next((line.number for line in self.lines[1:] if line.data.get("kind") == "boot"), 0)
        if again:
            raise RecordError(f"{path}:{again}: a second boot record: a file is one boot")
        self.passed_over: Final = sorted({str(line.data.get("kind")) for line in self.lines} - KINDS)
        """Kinds of lines that nothing is known of, which a replay passes over."""
        try:
            base = self._first_base()
            self.runs: Final = {
                name: Run(base + number_below(run["base_mod_262144"], RESIDUE), number_below(run["len"], RESIDUE))
                for name, run in self.boot["runs"].items()
            }
            self.arena_order: Final = number_below(self.boot["arena_order"], MAX_ARENA_ORDER + 1)
            self.debug_build: Final = self.boot.get("xen_build") == "debug=y"
            self.baseline: Final = number_below((self.boot.get("baseline_ref") or [1])[0], 1 << 16)
            self.capabilities: Final = int(self.boot.get("vtd_cap", DEFAULT_CAPABILITIES), 16)
            self.pvh: Final = "dom0=pvh" in self.boot.get("xen_cmdline", "")
            """Whether dom0 is a translated guest."""
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(f"{path}:1: the boot record is incomplete or wrong: {error!r}") from None

    def frame(self, text: str | int, arena: int = 0) -> int:
        """The number behind a frame as the record writes it; ``arena`` is the arena's first frame."""
        if isinstance(text, int):
            return text
        text = text.removeprefix("=")
        named = re.fullmatch(r"([A-Z])(\d+)", text)
        if named and named[1] in self.runs:
            return self.runs[named[1]].base + int(named[2])
        if text.startswith("arena+"):
            return arena + int(text[6:])
        return int(text, 0)

    def in_runs(self, mfn: int) -> bool:
        return any(run.base <= mfn < run.base + run.length for run in self.runs.values())

    def name(self, mfn: int, arena: int = 0, pages: int = 0) -> str:
        """A frame as the record would write it."""
        for name, run in self.runs.items():
            if run.base <= mfn < run.base + run.length:
                return f"{name}{mfn - run.base}"
        return f"arena+{mfn - arena}" if arena <= mfn < arena + pages else f"{mfn:#x}"

    def _first_base(self) -> int:
        """Where the residues of the runs count from: what an invalidation at ``=F<k>`` names, else the default."""
        for line in self.lines:
            dfn = line.data.get("in", {}).get("dfn")
            if not isinstance(dfn, str) or not dfn.startswith("="):
                continue
            for descriptor in line.data.get("iq", ()):
                address = re.search(r"addr(0x[0-9a-f]+)", descriptor)
                if address:
                    return (int(address[1], 16) >> 12) // RESIDUE * RESIDUE
        return FIRST_BASE


def number_below(value: Any, end: int) -> int:
    """``value`` if it is a number from 0 to below ``end``."""
    if not isinstance(value, int) or not 0 <= value < end:
        raise ValueError(f"{value!r} is not a number below {end}")
    return value


_BOOT: Final[dict[str, tuple[type, ...]]] = {"ctx_count": (int,), "arena_used": (int,)}
_CALL: Final[dict[str, tuple[type, ...]]] = {
    "op": (str, int),
    "in": (dict,),
    "out": (dict, str),
    "iq": (list,),
    "handle": (str,),
    "arena": (int,),
    "arena_delta": (int,),
    "context_entries_now": (dict,),
    "err": (str,),
}
_STATE: Final[dict[str, tuple[type, ...]]] = {
    "ctx": (dict,),
    "context_entries": (dict,),
    "extra_refs": (list,),
    "arena_used": (int,),
    "contexts_bitmap": (str,),
}
_REQUIRED: Final = frozenset({"op", "in"})


def _check(path: Path, line: Line) -> None:
    """:class:`RecordError` unless what is read of a line is of the right kind."""
    kind = line.data.get("kind")
    members = {"boot": _BOOT, "call": _CALL, "state": _STATE}.get(str(kind), {})
    for name, types in members.items():
        value = line.data.get(name)
        missing = name not in line.data
        if missing and name in _REQUIRED:
            raise RecordError(f"{path}:{line.number}: a {kind} has to have {name!r}")
        if not missing and not isinstance(value, types):
            raise RecordError(f"{path}:{line.number}: {name!r} cannot be {value!r}")
    if kind == "call" and "hang" not in line.data and not isinstance(line.data.get("ret"), int):
        raise RecordError(f"{path}:{line.number}: a call has to have a number in 'ret', or 'hang'")
    if kind == "call" and "err" in line.data and "ret" in line.data:
        result, said = line.data["ret"], line.data["err"]
        if result >= 0 or said != errno_name(result):
            raise RecordError(f"{path}:{line.number}: 'ret' is {result}, and 'err' says {said!r}")


def _read(path: Path) -> "list[Line]":
    lines = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            raise RecordError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(data, dict):
            raise RecordError(f"{path}:{number}: a line is one JSON object")
        lines.append(Line(number, data))
    return lines
