# SPDX-License-Identifier: GPL-2.0-or-later
"""Does somebody's C header say what a version says?  The machine's own compiler answers.

The header is compiled and asked, by probes, for the size of every struct, the offset, width and signedness of every
field and the value of every constant.  What it declares besides is read from its preprocessed text, so that nothing
extra goes unseen.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from abi import memory_op, stand_ins
from abi.c_declarations import Declarations, read
from abi.compiler import CompileError, Compiler, Unit
from abi.declare import ARCHES
from abi.layout import Layout, Member, place
from abi.model import Abi

AGREES: Final = "agrees"
DIFFERS: Final = "differs"
MISSING: Final = "missing"
EXTRA: Final = "extra"
NAMED_HOLE: Final = "names a hole"
"""The header spells padding out that the version leaves to the compiler: same bytes, not a difference."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing compared: a struct, a field of one, or a constant."""

    kind: str
    """``struct``, ``field``, ``constant``."""
    struct: str
    name: str
    verdict: str
    version: str
    """What the version says, for people."""
    header: str
    """What the header says."""


@dataclass(frozen=True, slots=True)
class Report:
    """A header held against a version on one architecture."""

    abi: str
    header: str
    arch: str
    compiler: str
    notes: tuple[str, ...]
    items: tuple[Item, ...]

    @property
    def differences(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.verdict in (DIFFERS, MISSING, EXTRA))


def check(
    abi: Abi, header: Path, compiler: Compiler, include: Sequence[Path] = (), defines: Sequence[str] = ()
) -> Report:
    """Hold ``header`` against ``abi`` as ``compiler`` reads it.

    :class:`abi.compiler.CompileError` carries the compiler's message if the header does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        stand_ins.write(Path(folder))
        flags = [f"-I{path}" for path in include] + [f"-D{name}" for name in defines]
        flags += ["-idirafter", folder]
        try:
            return _compare(abi, header, compiler, flags, folder, [])
        except CompileError as error:
            if "uint64_aligned_t" not in str(error) or "uint64_aligned_t" in map(defined_name, defines):
                raise
            note = "uint64_aligned_t is not defined by this header; read as a plain uint64_t"
            try:
                return _compare(abi, header, compiler, [*flags, "-Duint64_aligned_t=uint64_t"], folder, [note])
            except CompileError:
                raise error from None


def defined_name(define: str) -> str:
    """The macro that ``NAME``, ``NAME=VALUE`` or ``NAME(X)=VALUE`` behind -D defines; "" if it is none of them."""
    match = re.fullmatch(r"([A-Za-z_]\w*)(\([^()]*\))?(=.*)?", define, re.DOTALL)
    return match.group(1) if match else ""


def _compare(abi: Abi, header: Path, compiler: Compiler, flags: list[str], folder: str, notes: list[str]) -> Report:
    unit = Unit(compiler, f'#include <stddef.h>\n#include <stdint.h>\n#include "{header.resolve()}"\n', flags)
    declared = read(unit.preprocess())
    notes = notes + _stand_in_notes(declared, folder)
    return _Comparison(abi, header, compiler, unit, declared).report(notes)


def _stand_in_notes(declared: Declarations, folder: str) -> list[str]:
    files = {file for file, _ in declared.macros.values()}
    used = [name for name in stand_ins.HEADERS if f"{folder}/{name}" in files]
    return [f"{' and '.join(used)} not found with -I; built-in stand-ins used"] if used else []


class _Comparison:
    def __init__(self, abi: Abi, header: Path, compiler: Compiler, unit: Unit, declared: Declarations) -> None:
        self._abi: Final = abi
        self._header: Final = header
        self._compiler: Final = compiler
        self._declared: Final = declared
        self._unit: Final = unit
        self._questions: dict[str, int | None] = {}

    def report(self, notes: list[str]) -> Report:
        related = [s for s in memory_op.STRUCTS if s.tag in self._declared.structs]
        layouts = [place(s, ARCHES[self._compiler.arch]) for s in (*self._abi.structs, *related)]
        paths = {layout.tag: self._paths(layout) for layout in layouts}
        self._ask(layouts, paths)
        items: list[Item] = []
        for layout in layouts:
            items += self._struct(layout, paths[layout.tag])
        items += self._constants()
        items += self._extras()
        arch = self._compiler.arch
        return Report(self._abi.name, str(self._header), arch, str(self._compiler), tuple(notes), tuple(items))

    def _paths(self, layout: Layout) -> dict[str, str]:
        """Declared path -> how this header reaches it; the union may have any name or none."""
        found: dict[str, str] = {}
        for leaf in self._declared.leaves(layout.tag):
            head, _, tail = leaf.partition(".")
            for member in layout.members:
                wanted = f"{member.case}.{member.plain}" if member.case else member.plain
                if leaf_matches(leaf, wanted):
                    found[member.path] = wanted
                elif member.case and leaf_matches(tail, wanted):
                    found[member.path] = f"{head}.{wanted}"
        return found

    def _ask(self, layouts: list[Layout], paths: dict[str, dict[str, str]]) -> None:
        questions = []
        for layout in layouts:
            tag = layout.tag
            questions += [f"sizeof(struct {tag})", f"_Alignof(struct {tag})"]
            for path in paths[tag].values():
                questions += [_offset(tag, path), _width(tag, path), _signed(tag, path), _kind(tag, path)]
            for leaf in self._declared.leaves(tag):
                questions += [_offset(tag, leaf), _width(tag, leaf)]
        questions += [c.name for c in self._abi.constants]
        questions += [s.c_name for s in self._abi.subops.values() if s.c_name]
        questions += ["__HYPERVISOR_iommu_op", *(c.name for c in memory_op.CONSTANTS), *self._own_constants()]
        unique = list(dict.fromkeys(questions))
        self._questions = dict(zip(unique, self._unit.values(unique)))

    def _struct(self, layout: Layout, paths: dict[str, str]) -> list[Item]:
        tag = layout.tag
        size, align = self._questions[f"sizeof(struct {tag})"], self._questions[f"_Alignof(struct {tag})"]
        expected = f"{layout.size} bytes, aligned to {layout.align}"
        if size is None or align is None:
            return [Item("struct", tag, "", MISSING, expected, self._typedef_instead(tag))]
        verdict = AGREES if (size, align) == (layout.size, layout.align) else DIFFERS
        items = [Item("struct", tag, "", verdict, expected, f"{size} bytes, aligned to {align}")]
        items += [self._field(tag, member, paths.get(member.path)) for member in layout.members]
        claimed = set(paths.values())
        for leaf in self._declared.leaves(tag):
            if not any(leaf_matches(leaf, path) for path in claimed):
                items.append(self._extra_field(layout, leaf))
        return items

    def _field(self, tag: str, member: Member, path: str | None) -> Item:
        sign = "signed " if member.code.islower() else ""
        expected = f"{sign}{size_at(member.size, member.offset)}"
        if path is None:
            return Item("field", tag, member.path, MISSING, expected, "")
        offset, width = self._questions[_offset(tag, path)], self._questions[_width(tag, path)]
        signed = self._questions[_signed(tag, path)]
        if offset is None or width is None:
            return Item("field", tag, member.path, MISSING, expected, "not a plain member")
        kind = self._questions[_kind(tag, path)]
        is_word = member.c_type.startswith("XEN_GUEST_HANDLE")
        is_integer = kind in _INTEGERS and signed is not None
        same_type = is_word or (is_integer and bool(signed) == bool(sign))
        same = (offset, width) == (member.offset, member.size) and same_type
        seen = f"{'signed ' if signed and is_integer and not is_word else ''}{size_at(width, offset)}"
        if not is_word and not is_integer:
            seen += f", {_KINDS.get(kind, 'not an integer')}"
        return Item("field", tag, member.path, AGREES if same else DIFFERS, expected, seen)

    def _typedef_instead(self, tag: str) -> str:
        """That the header has a typedef by that name, of a struct without that tag."""
        for name in (f"{tag}_t", tag):
            found = self._declared.typedefs.get(name)
            if found is not None:
                kind = f"{found.kind} {found.tag}" if found.tag else f"{found.kind} without a tag"
                return f"only typedef {name}, of a {kind}"
        return ""

    def _extra_field(self, layout: Layout, leaf: str) -> Item:
        offset, width = self._questions[_offset(layout.tag, leaf)], self._questions[_width(layout.tag, leaf)]
        seen = "a bit field" if offset is None or width is None else size_at(width, offset)
        fills = offset is not None and width is not None and fills_hole(layout, offset, width)
        return Item("field", layout.tag, leaf, NAMED_HOLE if fills else EXTRA, "", seen)

    def _constants(self) -> list[Item]:
        items = []
        wanted = [(s.c_name, s.number) for s in self._abi.subops.values() if s.c_name]
        wanted += [(c.name, c.value) for c in self._abi.constants if c.name not in self._abi.private]
        for name, value in wanted:
            seen = self._questions[name]
            verdict = MISSING if seen is None else AGREES if seen == value else DIFFERS
            items.append(Item("constant", "", name, verdict, _number(value), "" if seen is None else _number(seen)))
        for name, value in self._optional().items():
            seen = self._questions[name]
            if seen is not None:
                verdict = AGREES if seen == value else DIFFERS
                items.append(Item("constant", "", name, verdict, _number(value), _number(seen)))
        return items

    def _optional(self) -> dict[str, int]:
        """Constants that have a right value where a header defines them, but live in others as a rule."""
        return {"__HYPERVISOR_iommu_op": self._abi.hypercall} | {c.name: c.value for c in memory_op.CONSTANTS}

    def _own_constants(self) -> list[str]:
        """Constants that the header itself defines, less include guards, names for types and functions."""
        own = str(self._header.resolve())
        names = [name for name, file in self._declared.enumerators.items() if file == own]
        names += [name for name, (file, body) in self._declared.macros.items() if file == own and body]
        return names

    def _extras(self) -> list[Item]:
        known = {s.c_name for s in self._abi.subops.values()} | {c.name for c in self._abi.constants}
        known |= self._optional().keys()
        items = []
        for name in self._own_constants():
            value = self._questions[name]
            if name not in known and value is not None:
                items.append(Item("constant", "", name, EXTRA, "", _number(value)))
        tags = {s.tag for s in (*self._abi.structs, *memory_op.STRUCTS)} | {"physdev_pci_device"}
        own = str(self._header.resolve())
        for tag, aggregate in self._declared.structs.items():
            if aggregate.file == own and tag not in tags:
                items.append(Item("struct", tag, "", EXTRA, "", "declared"))
        return items


def leaf_matches(leaf: str, wanted: str) -> bool:
    """Whether a header's leaf is the member ``wanted`` or lies inside it (a guest handle is a struct)."""
    return leaf == wanted or leaf.startswith(f"{wanted}.")


def fills_hole(layout: Layout, offset: int, width: int) -> bool:
    """Whether a member of ``width`` bytes at ``offset`` lies in bytes that the version leaves unnamed."""
    return any(h.offset <= offset and offset + width <= h.offset + h.size for h in layout.holes)


def _offset(tag: str, path: str) -> str:
    return f"__builtin_offsetof(struct {tag}, {path})"


def _width(tag: str, path: str) -> str:
    return f"sizeof(((struct {tag} *)0)->{path})"


def _signed(tag: str, path: str) -> str:
    return f"(__typeof__(((struct {tag} *)0)->{path}))-1 < 1"


def _kind(tag: str, path: str) -> str:
    return f"__builtin_classify_type(((struct {tag} *)0)->{path})"


_INTEGERS: Final = (1, 2, 3, 4)
"""What compilers answer for integers, characters, enumerations and truth values."""
_KINDS: Final[dict[int | None, str]] = {5: "an array or a pointer", 8: "floating point", 12: "a struct", 13: "a union"}


def size_at(width: int, offset: int) -> str:
    return f"{width} byte{'' if width == 1 else 's'} at {offset}"


def _number(value: int) -> str:
    return str(value) if -10 < value < 64 else f"{value:#x}"
