# SPDX-License-Identifier: GPL-2.0-or-later
"""A struct's bytes in words: each field's value, the flags in it by name, and holes that are not zero."""

from collections.abc import Iterator
from dataclasses import dataclass

from abi import memory_op
from abi.codec import Codec
from abi.model import Abi, SubOp


@dataclass(frozen=True, slots=True)
class Reading:
    """One field, or hole, of some bytes."""

    path: str
    offset: int
    size: int
    value: int
    direction: str
    meaning: str


_GROUPS = {
    "map_pages": "map",
    "map_page": "map",
    "reserved_device_memory_map": "map",
    "map_foreign_page": "map",
    "alloc_context": "alloc",
    "free_context": "free",
    "query_caps": "query",
}


def decoded_fields(abi: Abi, row: SubOp, codec: Codec, raw: bytes) -> Iterator[Reading]:
    """Fields in byte order; a hole is listed if a byte of it is not zero."""
    things: list[Reading] = []
    for member in codec.layout.members:
        signed = member.code.islower()
        value = int.from_bytes(raw[member.offset : member.end], "little", signed=signed)
        meaning = _meaning(abi, row, member.plain, value)
        things.append(Reading(member.plain, member.offset, member.size, value, member.direction, meaning))
    for hole in codec.layout.holes:
        value = int.from_bytes(raw[hole.offset : hole.offset + hole.size], "little")
        if value:
            things.append(Reading("(hole)", hole.offset, hole.size, value, "", "not zero, belongs to no field"))
    yield from sorted(things, key=lambda thing: thing.offset)


def tag_disagrees(abi: Abi, row: SubOp, codec: Codec, raw: bytes) -> str:
    """In words, that the tag in the struct names another sub-op than the one it is read as; "" if it does not."""
    for member in codec.layout.members:
        if member.plain == "subop_id":
            tag = int.from_bytes(raw[member.offset : member.end], "little")
            if tag != row.number:
                said = _meaning(abi, row, "subop_id", tag)
                return f"subop_id says {tag} ({said}), the bytes are read as {row.name} ({row.number})"
    return ""


def constants_for(abi: Abi, row: SubOp, field: str) -> dict[str, int]:
    """The constants that have a meaning in a field of a sub-op's struct, by name; sub-ops by both their names."""
    if field in ("subop_id", "subop", "cmd"):
        names = {s.c_name: s.number for s in abi.subops.values() if s.c_name}
        return names | {s.name: s.number for s in abi.subops.values()}
    if field == "cap_flags":
        groups = {"cap"}
    elif field in _FLAGS:
        groups = {_GROUPS.get(row.name, "")} | ({"create"} if row.name == "alloc_context" else set())
    elif field == "ctx_no":
        groups = {"context"}
    else:
        return {}
    constants = memory_op.CONSTANTS if row is memory_op.SUBOP else abi.constants
    return {c.name: c.value for c in constants if c.group in groups}


_FLAGS = ("flags", "map_flags", "alloc_flags", "free_flags")


def _meaning(abi: Abi, row: SubOp, field: str, value: int) -> str:
    if field == "subop_id":
        found = abi.subops.get(value)
        return found.name if found else "no such sub-op"
    if field in ("subop", "cmd"):
        found = abi.subops.get(value)
        return found.name if found else "no such sub-op"
    if field == "cap_flags":
        return flag_names(abi, "cap", value)
    if field in _FLAGS:
        return flag_names(abi, _GROUPS.get(row.name, ""), value)
    if field == "ctx_no" and value == 0:
        return "the default context"
    if field == "pgsize":
        return _bytes(value) if value.bit_count() == 1 and value >= 1024 else "not a page size"
    return ""


def _bytes(value: int) -> str:
    """A power of two in the largest unit that it is a whole number of."""
    power = min((value.bit_length() - 1) // 10, 3)
    return f"{value >> 10 * power} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def flag_names(abi: Abi, group: str, value: int) -> str:
    """The names of the bits set in ``value``, and what is left of it."""
    names = []
    for constant in abi.constants:
        if constant.group == group and constant.value and value & constant.value == constant.value:
            names.append(constant.name)
            value &= ~constant.value
    if value:
        names.append(f"{value:#x} (no name)")
    return " | ".join(names)
