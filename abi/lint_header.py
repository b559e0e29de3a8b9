# SPDX-License-Identifier: GPL-2.0-or-later
"""Lint rules about the header: layouts, types, names, marks."""

from collections.abc import Iterator
from itertools import combinations

from abi.canonical import CANONICAL
from abi.declare import ARCHES
from abi.errno import errno_name
from abi.layout import Hole, Layout, place
from abi.lint import Subject, rule
from abi.model import Convention

_ALEJANDRO_V3 = "Alejandro Vallejo on v3"
_ALEJANDRO_V4 = "Alejandro Vallejo on v4"


def _layouts(s: Subject, arch: str = "x86-64") -> Iterator[Layout]:
    for struct in s.abi.structs:
        yield place(struct, ARCHES[arch])


def _where(hole: Hole) -> str:
    near = f"before {hole.before}" if hole.before else "at the end"
    if hole.case and not hole.before:
        near = f"at the end of {hole.case}"
    return f"{hole.size} bytes at {hole.offset}, {near}"


@rule(
    "implicit-padding",
    "header",
    "warning",
    _ALEJANDRO_V4,
    "spell the bytes out as pad fields that must be zero, or order the fields so that none are left "
    "(ctx_no at the end fills most of them)",
)
def implicit_padding(s: Subject) -> Iterator[tuple[str, str]]:
    """Bytes of a struct that the compiler leaves and the header does not mention."""
    for layout in _layouts(s):
        holes = [h for h in layout.holes if h.before or not h.case or h.offset + h.size == layout.size]
        if holes:
            yield f"struct {layout.tag}", "the compiler inserts " + "; ".join(map(_where, holes))


@rule(
    "layout-differs-32-64",
    "header",
    "error",
    f"{_ALEJANDRO_V3}; defect A7",
    "align 64-bit fields and handles explicitly (uint64_aligned_t that is aligned for every caller, "
    "XEN_GUEST_HANDLE_64), or pad in front of them; else 32-bit callers need a compat handler",
)
def layout_differs(s: Subject) -> Iterator[tuple[str, str]]:
    """A struct whose bytes lie elsewhere for a 32-bit guest than for the hypervisor that reads them."""
    for wide, small in zip(_layouts(s), _layouts(s, "i386")):
        moved = [
            f"{m.path} at {n.offset} instead of {m.offset}"
            for m, n in zip(wide.members, small.members)
            if (m.offset, m.size) != (n.offset, n.size)
        ]
        if wide.size != small.size:
            moved.append(f"{small.size} bytes instead of {wide.size}")
        if moved:
            yield f"struct {wide.tag}", "on i386 " + ", ".join(moved)


@rule(
    "aligned-type-redefined",
    "header",
    "error",
    _ALEJANDRO_V4,
    "do not define uint64_aligned_t here; have xen.h define it, aligned, for guests as well",
)
def aligned_redefined(s: Subject) -> Iterator[tuple[str, str]]:
    """A fallback that makes uint64_aligned_t an unaligned type exactly where alignment matters."""
    if s.abi.aligned_fallback:
        yield "uint64_aligned_t", "defined as plain uint64_t if nobody else did, which on i386 is 4-byte aligned"


@rule("plain-u64", "header", "warning", _ALEJANDRO_V3, "use uint64_aligned_t")
def plain_u64(s: Subject) -> Iterator[tuple[str, str]]:
    """A 64-bit field of a type whose alignment depends on the guest."""
    for layout in _layouts(s):
        plain = [m.path for m in layout.members if m.c_type == "uint64_t"]
        if plain:
            yield f"struct {layout.tag}", "plain uint64_t: " + ", ".join(plain)


@rule("implicit-enum", "header", "warning", _ALEJANDRO_V4, "give the enum a tag and every number its value")
def implicit_enum(s: Subject) -> Iterator[tuple[str, str]]:
    """Sub-op numbers that change when somebody inserts a line."""
    if s.abi.enum_tag == "":
        yield "sub-op numbers", "enumerators of an anonymous enum without values"


@rule("signed-shift", "header", "note", _ALEJANDRO_V4, "write 1U << n")
def signed_shift(s: Subject) -> Iterator[tuple[str, str]]:
    """A bit of an unsigned field written as a shifted signed 1."""
    bits = [c.name for c in s.abi.constants if c.spelling.startswith("1 <<") and c.name not in s.abi.private]
    if bits:
        yield "flag constants", f"1 << n is an int: {', '.join(bits)}"


@rule("unnamed-subop", "header", "warning", _ALEJANDRO_V3, "define a name for it")
def unnamed_subop(s: Subject) -> Iterator[tuple[str, str]]:
    """A number that the hypervisor accepts and the header does not name."""
    for row in s.abi.subops.values():
        if not row.c_name:
            yield f"sub-op {row.number}", f"accepted ({row.name}), but has no name in the header"


@rule(
    "unnamed-flag",
    "header",
    "warning",
    "defect list, section on free_context",
    "define it in the public header, or refuse it",
)
def unnamed_flag(s: Subject) -> Iterator[tuple[str, str]]:
    """A flag that the hypervisor honours and the public header does not define."""
    for constant in s.abi.constants:
        if constant.name in s.abi.private:
            yield constant.name, f"value {constant.value:#x} is honoured but not in the public header: {constant.doc}"


@rule(
    "tagged-union",
    "header",
    "warning",
    _ALEJANDRO_V3,
    "give every sub-op its own struct, and pass the sub-op number in a register",
)
def tagged_union(s: Subject) -> Iterator[tuple[str, str]]:
    """All arguments in one union: every sub-op copies all of it, none can be extended alone."""
    if s.abi.convention is not Convention.SUBOP:
        for layout in _layouts(s):
            yield f"struct {layout.tag}", f"one union for {len(s.abi.subops)} sub-ops"


@rule("shared-flags", "header", "warning", _ALEJANDRO_V3, "give every struct flags of its own")
def shared_flags(s: Subject) -> Iterator[tuple[str, str]]:
    """One flags field in which a bit means something else in every sub-op."""
    for layout in _layouts(s):
        if not layout.cases or all(m.path != "flags" for m in layout.members):
            continue
        clashes = [
            f"{a.name} and {b.name}"
            for a, b in combinations(s.abi.constants, 2)
            if a.group != b.group and a.value & b.value and "context" not in (a.group, b.group)
        ]
        if clashes:
            yield f"struct {layout.tag}, flags", f"same bit, other meaning: {', '.join(clashes)}"


@rule(
    "result-in-shared-head",
    "header",
    "warning",
    _ALEJANDRO_V3,
    "return results in OUT fields of the sub-op's own struct",
)
def result_in_head(s: Subject) -> Iterator[tuple[str, str]]:
    """A field in front of the union that is an argument of most sub-ops and a result of one."""
    for layout in _layouts(s):
        for member in layout.members:
            if layout.cases and not member.case and member.direction == "inout":
                yield f"struct {layout.tag}, {member.path}", f"argument and result in one: {member.doc}"


@rule("direction-unmarked", "header", "note", _ALEJANDRO_V3, "mark every field IN, OUT or INOUT")
def direction_unmarked(s: Subject) -> Iterator[tuple[str, str]]:
    """A field whose comment does not say who writes it."""
    for layout in _layouts(s):
        silent = [m.path for m in layout.members if not m.promised]
        if silent:
            which = "no field is marked" if len(silent) == len(layout.members) else ", ".join(silent)
            yield f"struct {layout.tag}", f"IN or OUT is not said: {which}"


@rule("page-size-unstated", "header", "warning", _ALEJANDRO_V3, "add a page size or order, checked against a mask")
def page_size_unstated(s: Subject) -> Iterator[tuple[str, str]]:
    """Page counts without a word on the size of a page."""
    for name in ("map_pages", "unmap_pages"):
        row = s.abi.by_name.get(name)
        if row is not None and row.declaration is not None:
            codec = row.codec_on("x86-64")
            if codec is not None and "pgsize" not in codec.present:
                yield name, "counts pages; nothing says how large they are"


@rule("dangling-name", "header", "note", "Frediano Ziglio on v6 (wording)", "say the name that the header defines")
def dangling_name(s: Subject) -> Iterator[tuple[str, str]]:
    """A comment that speaks of a field, sub-op or error that does not exist."""
    structs = {layout.tag: {m.plain for m in layout.members} for layout in _layouts(s)}
    known = {row.name for row in s.abi.subops.values()} | {row.c_name for row in s.abi.subops.values()}
    for place_, word in s.abi.mentions:
        if word not in structs.get(place_, ()) and word not in known:
            yield place_, f"its comment speaks of '{word}', which is not there"
    for row in s.abi.subops.values():
        for promise in row.promises:
            if promise.text and promise.text != f"-{errno_name(promise.errno)}":
                yield row.name, f"promises {promise.text}; the error is called -{errno_name(promise.errno)}"


@rule(
    "number-or-count",
    "header",
    "note",
    "Frediano Ziglio on v6 (the sentence on the context count)",
    "call it nr_contexts and say whether the default context counts, or define it as the highest number",
)
def number_or_count(s: Subject) -> Iterator[tuple[str, str]]:
    """A limit named like a highest number and described as a count."""
    for layout in _layouts(s):
        for member in layout.members:
            if member.plain.startswith("max_") and member.plain.endswith("_no"):
                yield (
                    f"struct {layout.tag}, {member.plain}",
                    "named as the highest number, described as how many there are",
                )


@rule("empty-struct", "header", "note", "the sizes that C and C++ give it", "leave it out until it has a member")
def empty_struct(s: Subject) -> Iterator[tuple[str, str]]:
    """A struct without members: not ISO C, 0 bytes in GNU C, 1 byte in C++."""
    for layout in _layouts(s):
        if not layout.members:
            yield f"struct {layout.tag}", "has no members: 0 bytes in GNU C, 1 in C++, no C at all by the standard"


@rule(
    "width-differs",
    "header",
    "error",
    "defect A3",
    "use one width; the wider one invites values that the other cannot hold",
)
def width_differs(s: Subject) -> Iterator[tuple[str, str]]:
    """The same quantity in fields of different width."""
    seen: dict[str, tuple[str, int]] = {}
    for layout in _layouts(s):
        for member in layout.members:
            if member.direction == "reserved" or member.plain not in _QUANTITIES:
                continue
            first = seen.setdefault(member.plain, (layout.tag, member.size))
            if first[1] != member.size:
                sizes = f"{8 * first[1]} bits in {first[0]}, {8 * member.size} in {layout.tag}"
                yield member.plain, sizes


_QUANTITIES = {field.name for fields in CANONICAL.values() for field in fields} - {"flags"}


@rule(
    "number-only",
    "header",
    "note",
    "the author's own list with v7",
    "leave the number out of the header until something answers to it",
)
def number_only(s: Subject) -> Iterator[tuple[str, str]]:
    """A sub-op that is declared, and not implemented by anything."""
    idle = [f"{row.number} {row.name}" for row in s.abi.subops.values() if not row.implemented]
    if s.abi.implemented and idle:
        yield ", ".join(idle), "declared; always answer -EOPNOTSUPP"
