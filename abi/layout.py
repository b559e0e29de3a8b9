# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a C compiler puts the members of a declaration, on each architecture.

:func:`place` gives offsets, sizes, directions and holes for people and tools; :func:`as_construct` gives the same
thing as a plain construct with every hole an explicit ``Padding``, which is what codecs are generated from and
what they are proven equal to.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Any

import construct

from abi.declare import Arch, CInteger, CStruct, CUnion


@dataclass(frozen=True, slots=True)
class Member:
    """One integer of a struct: ``path`` is how C reaches it (``map_pages.gfn``), offsets and sizes are bytes."""

    path: str
    offset: int
    size: int
    code: str
    """Its code in the ``struct`` module."""
    c_type: str
    direction: str
    promised: str
    doc: str
    case: str
    """The union alternative that it belongs to, "" outside unions."""

    @property
    def end(self) -> int:
        return self.offset + self.size

    @property
    def plain(self) -> str:
        """``path`` without the union and its alternative: ``gfn`` for ``u.map_page.gfn``."""
        return self.path.split(f"{self.case}.", 1)[-1] if self.case else self.path


@dataclass(frozen=True, slots=True)
class Hole:
    """Bytes of a struct that no member names; ``before`` is the member after it, "" for the tail."""

    offset: int
    size: int
    before: str
    case: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A struct as a compiler for ``arch`` lays it out; sizes in bytes."""

    tag: str
    arch: str
    size: int
    align: int
    members: tuple[Member, ...]
    holes: tuple[Hole, ...]
    cases: tuple[str, ...]

    def member(self, path: str) -> Member:
        for member in self.members:
            if member.path == path:
                return member
        raise KeyError(path)

    def of_case(self, case: str) -> "Layout":
        """The struct as the tag selects ``case``; alternatives that another tag selects are left out, and what the
        case leaves unused at its end is a hole."""
        if not self.cases:
            return self
        members = tuple(m for m in self.members if m.case in ("", case))
        end = max((m.end for m in members), default=0)
        holes = [h for h in self.holes if h.case in ("", case) and h.offset + h.size <= end]
        if end < self.size:
            holes.append(Hole(end, self.size - end, "", case))
        return Layout(self.tag, self.arch, self.size, self.align, members, tuple(holes), (case,) if case else ())


def unwrap(member: Any) -> tuple[Any, str, str, str]:
    """A declared member's (construct, direction, direction promised, documentation)."""
    direction = promised = ""
    doc = ""
    while not isinstance(member, (CInteger, CStruct, CUnion)):
        doc = doc or str(member.docs or "")
        if type(member).__name__ == "Directed":
            direction, promised = member.direction, member.promised
        member = member.subcon
    return member, direction, promised, doc


def place(struct: CStruct, arch: Arch) -> Layout:
    """Lay ``struct`` out as the C compiler of ``arch`` does."""
    placing = _Placing(arch)
    size, align = placing.struct(struct, 0, "", "", ("", ""))
    return Layout(
        struct.tag, arch.name, size, align, tuple(placing.members), tuple(placing.holes), tuple(placing.cases)
    )


class _Placing:
    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self.members: list[Member] = []
        self.holes: list[Hole] = []
        self.cases: list[str] = []

    def align_of(self, kind: Any) -> int:
        if isinstance(kind, CInteger):
            return int(kind.on(self.arch)[1])
        parts = kind.cases if isinstance(kind, CUnion) else kind.subcons
        return max((self.align_of(unwrap(part)[0]) for part in parts), default=1)

    def struct(self, struct: CStruct, base: int, prefix: str, case: str, around: tuple[str, str]) -> tuple[int, int]:
        """Place the members from ``base`` on; (size, alignment) of the struct."""
        at = base
        align = 1
        for declared in struct.subcons:
            kind, direction, promised, doc = unwrap(declared)
            own = self.align_of(kind)
            align = max(align, own)
            start = at + -at % own
            path = f"{prefix}{declared.name}" if declared.name else prefix
            if start > at:
                self.holes.append(Hole(at, start - at, path, case))
            ways = (direction, promised) if direction else around
            at = start + self.one(kind, start, path, case, ways, doc)
        size = at - base + -(at - base) % align
        if base + size > at:
            self.holes.append(Hole(at, base + size - at, "", case))
        return size, align

    def one(self, kind: Any, at: int, path: str, case: str, ways: tuple[str, str], doc: str) -> int:
        if isinstance(kind, CStruct):
            return self.struct(kind, at, f"{path}.", case, ways)[0]
        if isinstance(kind, CUnion):
            return self.union(kind, at, path)
        code = kind.on(self.arch)[0]
        size = int(construct.FormatField("<", code).length)
        self.members.append(Member(path, at, size, code, kind.c_type, *ways, doc, case))
        return size

    def union(self, union: CUnion, at: int, prefix: str) -> int:
        size = 0
        for declared in union.cases:
            self.cases.append(declared.name)
            path = f"{prefix}.{declared.name}" if prefix else declared.name
            inner, direction, promised, _ = unwrap(declared)
            size = max(size, self.struct(inner, at, f"{path}.", declared.name, (direction, promised))[0])
        align = self.align_of(union)
        return size + -size % align


def as_construct(layout: Layout, case: str = "") -> Any:
    """A construct for the bytes of ``layout``: one flat entry per member, named by its path, and explicit padding.

    For a tagged union it is the struct as the tag selects ``case``.
    """
    parts: list[Any] = []
    at = 0
    for member in sorted(layout.of_case(case).members, key=lambda m: m.offset):
        if member.offset > at:
            parts.append(construct.Padding(member.offset - at))
        parts.append(member.path / construct.FormatField("<", member.code))
        at = member.end
    if layout.size > at:
        parts.append(construct.Padding(layout.size - at))
    return construct.Struct(*parts)


def as_struct(layout: Layout, case: str = "") -> Struct:
    """:func:`as_construct` as a ``Struct``: the values of the members in the order of their offsets."""
    codes = ["<"]
    at = 0
    for member in sorted(layout.of_case(case).members, key=lambda m: m.offset):
        codes.append(f"{member.offset - at}x{member.code}")
        at = member.end
    return Struct(f"{''.join(codes)}{layout.size - at}x")
