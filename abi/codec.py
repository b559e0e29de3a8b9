# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes of one sub-op's struct to a tuple of ints and back, generated from the declaration at import.

Parsing with construct takes microseconds, a hypercall must not.  So the construct that :mod:`abi.layout` makes of
a declaration is read once and turned into ``struct`` formats and a few lines of Python source; a property test
holds the result equal to construct for all values.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import construct

from abi.canonical import CANONICAL, CanonicalField
from abi.declare import Arch, CStruct
from abi.layout import Layout, Member, as_construct, place

_REQUIRED: Final = frozenset({"nr_pages"})
"""Fields whose default stands for a version without them, not for a caller who leaves them out."""

Buffer = bytes | bytearray | memoryview


class Codec:
    """The struct of one sub-op in one version on one architecture.

    ``decode(buf)`` gives the canonical fields of :mod:`abi.canonical`, in that order; it is total on any ``size``
    bytes, and any other length is a ``ValueError``.  ``encode(*fields)`` takes all of them, in that order; holes
    are zero, a union's tag is filled in, and a value that does not fit is a ``ValueError`` naming the field.
    """

    decode: Callable[[Buffer], tuple[int, ...]]
    decode_clean: Callable[[Buffer], tuple[int, ...] | None]
    """``decode``, but ``None`` where a byte that ``hole_mask`` covers is set."""
    encode: Callable[..., bytes]
    patch_out: Callable[..., None]
    """``patch_out(buf, *out)`` stores the fields of ``self.out`` into a struct; every other byte stays."""
    put_out: Callable[[bytearray | memoryview, tuple[int, ...]], None]
    """``patch_out`` with the values in one tuple."""

    def __init__(self, subop: str, declaration: CStruct, arch: Arch, case: str = "", tag: int = 0) -> None:
        layout = place(declaration, arch)
        table = CANONICAL[subop]
        self.subop: Final = subop
        self.case: Final = case
        self.layout: Final = layout.of_case(case)
        self.size: Final = layout.size
        self.construct: Final = as_construct(layout, case)
        self.fields: Final = tuple(field.name for field in table)
        self.defaults: Final = tuple(field.default if field.name not in _REQUIRED else 0 for field in table)
        self.out: Final = tuple(field.name for field in table if field.out)
        self.present: Final = _match(table, self.layout)
        """Canonical name -> where this version keeps it; fields that it lacks are absent."""
        self.tag: Final = tag if layout.cases else None
        self.hole_mask: Final = 0 if layout.cases else _hole_mask(self.layout, self.present)
        self._table: Final = table
        self._generate()

    def as_dict(self, buf: Buffer) -> dict[str, int]:
        """``decode`` with names."""
        return dict(zip(self.fields, self.decode(buf)))

    def patch(self, buf: bytearray, field: str, value: int) -> None:
        """Store one canonical field into a struct; nothing happens if this version has no such field."""
        if field not in self.fields:
            raise ValueError(f"{self.subop} has no field {field!r}; it has {', '.join(self.fields)}")
        member = self.present.get(field)
        if member is not None:
            try:
                struct.pack_into(f"<{member.code}", buf, member.offset, value)
            except struct.error:
                raise self._misfit({field: value}) from None

    def _generate(self) -> None:
        formats, order = _format(self.construct)
        by_path = {member.path: name for name, member in self.present.items()}
        names = [by_path.get(path, "") for path in order]
        local = [f"f_{name}" if name else "_" for name in names]
        whole = struct.Struct(formats)
        tag_path = next((path for path in order if path == "subop_id"), None) if self.tag is not None else None
        source = _source(self._table, self.present, order, local, tag_path, self.tag)
        space: dict[str, Any] = {
            "unpack": whole.unpack,
            "pack": whole.pack,
            "error": struct.error,
            "length": self._length,
            "misfit": self._misfit_positional,
            "misfit_out": self._misfit_out,
        }
        stored = [self.present[name] for name in self.out if name in self.present]
        body = []
        for number, run in enumerate(_runs(stored)):
            space[f"store{number}"] = struct.Struct("<" + "".join(m.code for m in run)).pack_into
            values = ", ".join(f"f_{by_path[m.path]}" for m in run)
            body.append(f"        store{number}(buf, {run[0].offset}, {values})")
        handed = "".join(f"f_{name}, " for name in self.out)
        source += "\n".join(
            [
                "def put_out(buf, out):",
                *([f"    {handed}= out"] if handed else []),
                "    try:",
                *(body or ["        pass"]),
                "    except error:",
                "        raise misfit_out(len(buf), *out) from None",
                "def patch_out(buf, *out):",
                "    put_out(buf, out)",
            ]
        )
        if self.hole_mask:
            clean_format, clean_source = _clean_source(self._table, self.present, self.size)
            space["unpack_all"] = struct.Struct(clean_format).unpack
            source = f"{source}\n{clean_source}"
        exec(compile(source, f"<codec of {self.subop}>", "exec"), space)
        self.decode = space["decode"]
        self.decode_clean = space["decode_clean"] if self.hole_mask else self.decode
        self.encode = space["encode"]
        self.patch_out = space["patch_out"]
        self.put_out = space["put_out"]

    def _length(self, buf: Buffer) -> ValueError:
        return ValueError(f"the struct of {self.subop} is {self.size} bytes, not {len(buf)}")

    def _misfit_positional(self, *values: Any) -> ValueError:
        return self._misfit(dict(zip(self.fields, values)))

    def _misfit_out(self, length: int, *values: Any) -> ValueError:
        if length < self.size:
            return ValueError(f"the struct of {self.subop} is {self.size} bytes, not {length}")
        return self._misfit(dict(zip(self.out, values)))

    def _misfit(self, values: dict[str, Any]) -> ValueError:
        for name, value in values.items():
            member = self.present.get(name)
            if member is None:
                continue
            try:
                struct.pack(f"<{member.code}", value)
            except struct.error:
                shown = f"{value:#x}" if isinstance(value, int) else repr(value)
                return ValueError(f"{self.subop}.{name} is {8 * member.size} bits wide, {shown} does not fit")
        return ValueError(f"the struct of {self.subop} is {self.size} bytes, the buffer is shorter")

    def __repr__(self) -> str:
        return f"<codec of {self.subop}: {self.size} bytes, {', '.join(self.fields)}>"


def _match(table: Sequence[CanonicalField], layout: Layout) -> dict[str, Member]:
    """Which member holds which canonical field."""
    found: dict[str, Member] = {}
    for member in layout.members:
        for field in table:
            if member.plain in field.c_names and member.direction != "reserved":
                found[field.name] = member
    return found


def _hole_mask(layout: Layout, present: dict[str, Member]) -> int:
    mask = (1 << 8 * layout.size) - 1
    for member in present.values():
        mask &= ~(((1 << 8 * member.size) - 1) << 8 * member.offset)
    return mask


def _format(declared: Any) -> tuple[str, list[str]]:
    """The ``struct`` format of a flat construct and the names of its values, in byte order."""
    codes: list[str] = ["<"]
    names: list[str] = []
    for part in declared.subcons:
        inner = part
        while isinstance(inner, construct.Renamed):
            inner = inner.subcon
        if isinstance(inner, construct.FormatField):
            codes.append(inner.fmtstr[1])
            names.append(part.name)
        else:
            codes.append(f"{part.sizeof()}x")
    return "".join(codes), names


def _runs(members: list[Member]) -> list[list[Member]]:
    """Members grouped into stretches without a hole, so that storing them touches nothing else."""
    runs: list[list[Member]] = []
    for member in sorted(members, key=lambda m: m.offset):
        if runs and runs[-1][-1].end == member.offset:
            runs[-1].append(member)
        else:
            runs.append([member])
    return runs


def _source(
    table: Sequence[CanonicalField],
    present: dict[str, Member],
    order: list[str],
    local: list[str],
    tag_path: str | None,
    tag: int | None,
) -> str:
    """Python source of ``decode`` and ``encode``."""
    result = _result(table, present)
    lines = ["def decode(buf):", "    try:"]
    if local and local == result:
        lines.append("        return unpack(buf)")
    else:
        if local:
            lines.append(f"        {', '.join(local)}, = unpack(buf)")
        else:
            lines.append("        unpack(buf)")
        lines.append(f"        return {_tuple(result)}")
    lines += ["    except error:", "        raise length(buf) from None"]
    arguments = ", ".join(f"f_{field.name}" for field in table)
    packed = [repr(tag) if path == tag_path else (name if name != "_" else "0") for path, name in zip(order, local)]
    lines += [f"def encode({arguments}):", "    try:", f"        return pack({', '.join(packed)})"]
    lines += ["    except error:", f"        raise misfit({arguments}) from None"]
    return "\n".join(lines) + "\n"


def _clean_source(table: Sequence[CanonicalField], present: dict[str, Member], size: int) -> tuple[str, str]:
    """The ``struct`` format that reads every byte of a struct with holes, and the source of ``decode_clean``."""
    codes: list[str] = []
    local: list[str] = []
    holes: list[str] = []
    at = 0
    for end, code, name, following in [
        *((m.offset, m.code, f"f_{name}", m.end) for name, m in sorted(present.items(), key=lambda p: p[1].offset)),
        (size, "", "", size),
    ]:
        for width, piece in ((8, "Q"), (4, "L"), (2, "H"), (1, "B")):
            while end - at >= width:
                holes.append(f"h{at}")
                codes.append(piece)
                local.append(holes[-1])
                at += width
        if code:
            codes.append(code)
            local.append(name)
        at = following
    lines = [
        "def decode_clean(buf):",
        "    try:",
        f"        {', '.join(local)}, = unpack_all(buf)",
        "    except error:",
        "        raise length(buf) from None",
        f"    return None if {' or '.join(holes)} else {_tuple(_result(table, present))}",
    ]
    return "<" + "".join(codes), "\n".join(lines)


def _result(table: Sequence[CanonicalField], present: dict[str, Member]) -> list[str]:
    """What ``decode`` hands out, field by field, as source."""
    return [f"f_{field.name}" if field.name in present else repr(field.default) for field in table]


def _tuple(values: list[str]) -> str:
    return f"({', '.join(values)}{',' if values else ''})"
