# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaying a record: every call issued again, every answer and every state held against the recorded one."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from abi.errno import errno_name
from base.units import Sbdf, make_sbdf, parse_sbdf
from hypervisor.errors import HostStopped
from hypervisor.vtd.driver import VtdBackend
from testbed.golden.machine import READ_ONLY_LINEAR, GoldenMachine
from testbed.golden.records import RESIDUE, Line, Record, RecordError, number_below
from testbed.golden.shape import context_shape, marker_bits, recorded_shape

OPERATIONS: Final = {
    "caps": "query_capabilities",
    "alloc": "alloc_context",
    "free": "free_context",
    "map": "map_pages",
    "unmap": "unmap_pages",
    "lookup": "lookup_page",
    "reattach": "reattach_device",
    "noop": "noop",
}
"""Names of sub-ops in records."""
_UNION: Final = 32
_COMMON: Final = (("ctx", 2, 2), ("flags", 4, 4))
_FIELDS: Final = {
    "map": (("gfn", 8, 8), ("dfn", 16, 8), ("nr", 24, 4), ("mapped", 28, 4)),
    "unmap": (("dfn", 8, 8), ("nr", 16, 4), ("unmapped", 20, 4)),
    "reattach": (("seg", 8, 2), ("bus", 10, 1), ("devfn", 11, 1)),
    "lookup": (("gfn", 8, 8), ("dfn", 16, 8)),
    "caps": (("max_ctx_no", 8, 2), ("pad", 10, 2), ("max_nr_pages", 12, 4), ("max_iova_addr", 16, 8)),
}
"""Members of the union by the records' names: (name, offset, size)."""


_NOT_UNDERSTOOD: Final = (LookupError, ArithmeticError, TypeError, ValueError, AttributeError)
"""What reading a line that is no record's ends in."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs, and where."""

    line: int
    what: str
    recorded: str
    replayed: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}: recorded {self.recorded}, replayed {self.replayed}"


@dataclass(slots=True)
class Replay:
    """How one file went."""

    path: Path
    calls: int = 0
    states: int = 0
    descriptors: int = 0
    stopped: str = ""
    """What stopped the host at the end, if anything did."""
    passed_over: list[str] = field(default_factory=list)
    """Kinds of lines that were not understood."""
    differences: list[Difference] = field(default_factory=list)
    """The first difference, or none."""


class _Differs(Exception):
    def __init__(self, what: str, recorded: object, replayed: object) -> None:
        super().__init__(what)
        self.what = what
        self.recorded = recorded if isinstance(recorded, str) else repr(recorded)
        self.replayed = replayed if isinstance(replayed, str) else repr(replayed)


def replay(path: Path, profile: str, defects: tuple[str, ...] = ()) -> Replay:
    """Replay one file on a hypervisor of ``profile`` with ``defects`` besides; :class:`RecordError` if it is none."""
    record = Record(path)
    result = Replay(path, passed_over=record.passed_over)
    try:
        machine = GoldenMachine(record, profile, defects)
    except _NOT_UNDERSTOOD as error:
        raise RecordError(f"{path}:1: no machine can be built like this: {error}") from error
    player = _Player(record, machine, result)
    for line in record.lines:
        try:
            if line.data.get("kind") == "boot":
                player.boot(line)
            elif line.data.get("kind") == "call":
                player.call(line)
            elif line.data.get("kind") == "state":
                player.state(line)
        except _NOT_UNDERSTOOD as error:
            raise RecordError(f"{path}:{line.number}: the record cannot be understood: {error!r}") from error
        except _Differs as found:
            result.differences.append(Difference(line.number, found.what, found.recorded, found.replayed))
        if result.differences or result.stopped:
            break
    return result


class _Player:
    def __init__(self, record: Record, machine: GoldenMachine, result: Replay) -> None:
        self._record: Final = record
        self._machine: Final = machine
        self._result: Final = result
        backend = machine.xen.backend
        assert isinstance(backend, VtdBackend)
        self._queue: Final = backend.units[0].queue
        self._arena = machine.iommu.arena.used if machine.iommu.arena is not None else 0
        self._bitmap = self._contexts()

    def boot(self, line: Line) -> None:
        """What a domain has before its first call."""
        data, limit = line.data, self._machine.iommu.limit
        if "ctx_count" in data and data["ctx_count"] != limit:
            raise _Differs("boot: contexts that may exist", data["ctx_count"], limit)
        if "arena_used" in data and data["arena_used"] != self._arena_used():
            raise _Differs("boot: arena pages in use", data["arena_used"], self._arena_used())

    # ---------------------------------------------------------------------------------------------- calls

    def call(self, line: Line) -> None:
        data, machine = line.data, self._machine
        self._result.calls += 1
        used, lines = self._arena_used(), len(machine.xen.console)
        self._bitmap = self._contexts()
        tail = self._queue.tail
        address = self._place(data)
        stopped = ""
        result = 0
        try:
            result = machine.xen.hypercall(machine.vcpu, machine.xen.abi.hypercall, address)
        except HostStopped as stop:
            stopped = f"{type(stop).__name__}: {stop}"
        self._result.stopped = stopped
        if "hang" in data or stopped:
            if not stopped or "hang" not in data:
                recorded = data.get("hang") or _errno(data["ret"])
                raise _Differs(f"{data['op']}: outcome", recorded, stopped or _errno(result))
            self._entries_now(data.get("context_entries_now", {}))
            return
        if result != data["ret"]:
            raise _Differs(f"{data['op']}: return value", _errno(data["ret"]), _errno(result))
        self._compare_out(data)
        descriptors = self._descriptors(tail)
        self._result.descriptors += len(descriptors)
        if descriptors != data.get("iq", []):
            raise _Differs(f"{data['op']}: invalidation descriptors", data.get("iq", []), descriptors)
        if "arena" in data and self._arena_used() != data["arena"]:
            raise _Differs(f"{data['op']}: arena pages in use", data["arena"], self._arena_used())
        if "arena_delta" in data and self._arena_used() - used != data["arena_delta"]:
            raise _Differs(f"{data['op']}: change of arena", data["arena_delta"], self._arena_used() - used)
        logged = any("Flush operation failed" in text for text in machine.xen.console[lines:])
        if logged != ("flush-failed-logged" in data.get("xen_log", ())):
            raise _Differs(f"{data['op']}: log", data.get("xen_log", []), "flush-failed-logged" if logged else [])

    def _place(self, data: dict[str, Any]) -> int:
        """Write the struct where the call wants it; the address for the register."""
        machine = self._machine
        handle = data.get("handle", "")
        raw = self._encode(data)
        given = re.fullmatch(r"address (0x[0-9a-f]+|\d+)", handle)
        if given:
            return int(given[1], 0)
        if handle and not re.fullmatch(
            r"read-only page|page offset \d+|last \d+ bytes before an unmapped page", handle
        ):
            raise ValueError(f"unknown handle {handle!r}")
        offset = 0
        last, shifted = re.match(r"last (\d+) bytes", handle), re.fullmatch(r"page offset (\d+)", handle)
        if last:
            offset = 4096 - int(last[1])
        elif shifted:
            offset = int(shifted[1])
        machine.memory.write(machine.buffer_maddr + offset, raw)
        return (READ_ONLY_LINEAR if handle == "read-only page" else machine.buffer) + offset

    def _encode(self, data: dict[str, Any]) -> bytearray:
        op = data["op"]
        raw = bytearray(_UNION)
        abi = self._machine.xen.abi
        number = abi.by_name[OPERATIONS[op]].number if isinstance(op, str) else op
        raw[0:2] = number.to_bytes(2, "little")
        for name, offset, size in (*_COMMON, *_FIELDS.get(op, ())):
            value = self._number(data["in"].get(name, 0))
            raw[offset : offset + size] = value.to_bytes(size, "little")
        return raw

    def _number(self, value: str | int) -> int:
        return self._record.frame(value, self._machine.arena_base) & (1 << 64) - 1

    def _compare_out(self, data: dict[str, Any]) -> None:
        out, op = data.get("out"), data["op"]
        if out is None:
            return
        machine = self._machine
        handle = data.get("handle", "")
        if isinstance(out, str):
            last = re.match(r"last (\d+) bytes", handle)
            length = int(last[1]) if last else _UNION
            got = machine.memory.read(machine.buffer_maddr + 4096 - length, length).hex()
            if got != out[: 2 * length]:
                raise _Differs(f"{op}: struct", out[: 2 * length], got)
            return
        shifted = re.fullmatch(r"page offset (\d+)", handle)
        raw = machine.memory.read(machine.buffer_maddr + (int(shifted[1]) if shifted else 0), _UNION)
        for name, offset, size in (*_COMMON, *_FIELDS.get(op, ())):
            if name in out:
                value = int.from_bytes(raw[offset : offset + size], "little")
                if value != self._number(out[name]):
                    raise _Differs(f"{op}: {name}", str(out[name]), self._written(value, out[name]))

    def _written(self, value: int, like: object) -> str:
        if isinstance(like, int):
            return str(value)
        machine = self._machine
        arena = machine.iommu.arena
        return self._record.name(value, machine.arena_base, arena.pages if arena is not None else 0)

    def _descriptors(self, tail: int) -> list[str]:
        """What was queued since the ring's tail was ``tail``, waits left out."""
        machine, queue = self._machine, self._queue
        found = []
        while tail != queue.tail:
            low, high = machine.memory.words[queue.word(tail)], machine.memory.words[queue.word(tail) + 1]
            text = _descriptor(low, high)
            if text:
                found.append(text)
            tail = tail + 1 & 255
        return found

    def _arena_used(self) -> int:
        arena = self._machine.iommu.arena
        return arena.used if arena is not None else 0

    def _contexts(self) -> str:
        return hex(sum(1 << number - 1 for number in self._machine.iommu.contexts))

    # --------------------------------------------------------------------------------------------- states

    def state(self, line: Line) -> None:
        data = line.data
        self._result.states += 1
        if "arena_used" in data and data["arena_used"] != self._arena_used():
            raise _Differs("state: arena pages in use", data["arena_used"], self._arena_used())
        if "contexts_bitmap" in data and data["contexts_bitmap"] != self._contexts():
            raise _Differs("state: contexts", data["contexts_bitmap"], self._contexts())
        if "contexts_bitmap_before" in data and data["contexts_bitmap_before"] != self._bitmap:
            raise _Differs("state: contexts before the call", data["contexts_bitmap_before"], self._bitmap)
        for number, wanted in data.get("ctx", {}).items():
            self._compare_context(int(number), wanted)
        for device, wanted in data.get("context_entries", {}).items():
            self._compare_entry(parse_sbdf(device), device, wanted)
        if "extra_refs" in data:
            self._compare_references(data["extra_refs"])

    def _compare_context(self, number: int, wanted: dict[str, Any]) -> None:
        machine = self._machine
        context = machine.iommu.get(number)
        if context is None:
            raise _Differs(f"state: context {number}", "there", "missing")
        marked = any("marker_words" in table for table in wanted.get("tables", ()))
        got = context_shape(machine.memory, context, self._record, machine.arena_base, markers=marked)
        for place, value in marker_bits(wanted).items():
            if got["marker_bits"].get(place) != value:
                raise _Differs(
                    f"state: context {number}: markers of {place}", value, got["marker_bits"].get(place, "no table")
                )
        for part, value in recorded_shape(wanted, self._record, machine.arena_base).items():
            if got[part] != value:
                raise _Differs(f"state: context {number}: {part}", *_first_difference(value, got[part]))

    def _compare_entry(self, sbdf: Sbdf, device: str, wanted: dict[str, str] | None) -> None:
        got = self._machine.context_entry(sbdf)
        if wanted is None or got is None:
            if wanted is not None or got is not None:
                raise _Differs(f"state: context entry of {device}", wanted, got)
            return
        low, high = got
        self._compare_entry_words(device, (wanted["lo_attrs"], wanted["root"], wanted["hi"]), low, high)

    def _compare_entry_words(self, device: str, wanted: tuple[str, str, str], low: int, high: int) -> None:
        machine = self._machine
        attributes, root, upper = wanted
        frame = low >> 12
        if frame == machine.default_root:
            named = "context 0"
        else:
            named = f"arena+{frame - machine.arena_base}" if frame else "0x0"
        if not root.startswith("arena+") and int(root, 16):
            root = "context 0"
        got = (hex(low & 0xFFF), named, hex(high))
        if got != (attributes, root, upper):
            raise _Differs(f"state: context entry of {device}", (attributes, root, upper), got)

    def _entries_now(self, entries: dict[str, list[str]]) -> None:
        for requester, wanted in entries.items():
            sbdf = int(requester, 16)
            got = self._machine.context_entry(make_sbdf(0, sbdf >> 8, sbdf >> 3 & 31, sbdf & 7))
            low, high = got or (0, 0)
            self._compare_entry_words(requester, (wanted[0], wanted[1], wanted[2]), low, high)

    def _compare_references(self, extra: list[dict[str, Any]]) -> None:
        machine, record = self._machine, self._record
        wanted: dict[int, int] = {}
        for run in extra:
            first = record.frame(run["first"], machine.arena_base)
            wanted.update((first + k, run["delta"]) for k in range(number_below(run["n"], RESIDUE)))
        refs, start = machine.xen.frames.refs, machine.start
        got: dict[int, int] = {}
        for place in record.runs.values():
            now, then = refs[place.base : place.base + place.length], start[place.base : place.base + place.length]
            if now != then:
                for k, (new, old) in enumerate(zip(now, then)):
                    if new != old:
                        got[place.base + k] = (new & 0xFFFFFFFF) - (old & 0xFFFFFFFF)
        for mfn in sorted(wanted.keys() | got.keys()):
            if wanted.get(mfn, 0) != got.get(mfn, 0):
                name = record.name(mfn)
                raise _Differs(f"state: references of {name}", f"{wanted.get(mfn, 0):+}", f"{got.get(mfn, 0):+}")


def _descriptor(low: int, high: int) -> str:
    """An invalidation descriptor as records write it; nothing for a wait."""
    kind, granularity, did = low & 0xF, low >> 4 & 3, low >> 16 & 0xFFFF
    if kind == 1:
        return f"CC g{granularity} did{did:#x}" + (f" sid{low >> 32 & 0xFFFF:#x}" if granularity == 3 else "")
    if kind == 2:
        where = f" addr{high & ~0xFFF:#x} am{high & 0x3F} ih{high >> 6 & 1}" if granularity == 3 else ""
        return f"IOTLB g{granularity} did{did:#x}{where}"
    return "" if kind == 5 else f"type {kind}"


def _errno(result: int) -> str:
    return errno_name(result) if result < 0 else str(result)


def _first_difference(recorded: Any, replayed: Any) -> tuple[str, str]:
    """Where two lists part, or both as they are."""
    if isinstance(recorded, list) and isinstance(replayed, list):
        for left, right in zip(recorded, replayed):
            if left != right:
                return str(left), str(right)
        longer = recorded if len(recorded) > len(replayed) else replayed
        extra = str(longer[min(len(recorded), len(replayed))])
        return (extra, "nothing") if longer is recorded else ("nothing", extra)
    return str(recorded), str(replayed)
