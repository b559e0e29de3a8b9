# SPDX-License-Identifier: GPL-2.0-or-later
"""A context's tables as records describe them: tables in walk order, leaves as runs, marker words.

Read from the bytes of the tables, not through the code that writes them.
"""

import re
from typing import Any, Final

from hypervisor.iommu.context import IommuContext
from hypervisor.pagetable.format import ADDRESS_MASK
from machine.memory import PhysicalMemory
from testbed.golden.records import RESIDUE, Record, number_below

_ATTRIBUTES: Final = 0xFFF
_MARKER: Final = 0xF << 52
_SUPERPAGE: Final = 1 << 7
_READ_WRITE: Final = 3

Leaf = tuple[int, int, int, int]
"""(device frame, level, machine frame, attributes)."""


def context_shape(
    memory: PhysicalMemory, context: IommuContext, record: Record, arena: int, *, markers: bool
) -> dict[str, Any]:
    """What the records say of a context, read from memory."""
    assert context.table is not None
    root, levels = context.table.root, context.table.levels
    tables: list[Any] = []
    leaves: list[Leaf] = []
    if root:
        _walk(memory, root, levels, 0, tables, leaves, record, arena, markers)
    return {
        "dying": int(context.dying),
        "devices": len(context.devices),
        "root": root - arena if root else None,
        "tables": [(level, dfn, at - arena) for level, dfn, at, _ in tables],
        "leaves": runs(leaves),
        "marker_words": [(level, dfn, word) for level, dfn, _, words in tables for word in words],
        "marker_bits": {(level, dfn): _digits(memory, at) for level, dfn, at, _ in tables},
    }


def _digits(memory: PhysicalMemory, table: int) -> str:
    """Bits 55:52 of a table's entries, a digit each."""
    return "".join(f"{word >> 52 & 0xF:x}" for word in memory.words[table << 9 : (table << 9) + 512].tolist())


def marker_bits(wanted: dict[str, Any]) -> dict[tuple[int, int], str]:
    """(level, first device frame) of those tables whose markers a record spells out, with the digits."""
    tables = wanted.get("tables", ())
    named = "marker_bits_55_52"
    return {(table["level"], int(table["dfn"], 0)): table[named] for table in tables if named in table}


def _walk(
    memory: PhysicalMemory,
    table: int,
    level: int,
    dfn: int,
    tables: list[Any],
    leaves: list[Leaf],
    record: Record,
    arena: int,
    markers: bool,
) -> None:
    words = memory.words[table << 9 : (table << 9) + 512].tolist()
    listed: list[tuple[int, str]] = []
    tables.append((level, dfn, table, listed))
    shift = 9 * (level - 1)
    for index, word in enumerate(words):
        if not word:
            continue
        here = dfn + (index << shift)
        frame, leaf = (word & ADDRESS_MASK) >> 12, level == 1 or bool(word & _SUPERPAGE)
        if markers and (frame or level > 1):
            listed.append((index, _in_words(word, leaf, record, frame)))
        if not word & _READ_WRITE:
            continue
        if leaf:
            leaves.append((here, level, frame, word & _ATTRIBUTES))
        else:
            _walk(memory, frame, level - 1, here, tables, leaves, record, arena, markers)


def _in_words(word: int, leaf: bool, record: Record, frame: int) -> str:
    if word & _READ_WRITE:
        return f"{'leaf' if leaf else 'table'}|{word & (_ATTRIBUTES | _MARKER):#x}"
    if frame:
        return f"not present, frame {record.name(frame)} attrs {word & _ATTRIBUTES:#x}"
    return hex(word)


def _without_marker(text: str) -> str:
    """An entry without permissions by its low bits alone: records are not clear about the others."""
    dead = re.fullmatch(r"(not present, frame \S+ attrs) (0x[0-9a-f]+)", text)
    return f"{dead[1]} {int(dead[2], 16) & _ATTRIBUTES:#x}" if dead else text


def runs(leaves: list[Leaf]) -> list[tuple[int, int, int, int, int]]:
    """(device frame, level, machine frame, attributes, leaves) of stretches as long as they can be."""
    found: list[tuple[int, int, int, int, int]] = []
    for dfn, level, mfn, attributes in leaves:
        if found:
            first, same, frame, rights, count = found[-1]
            step = count << 9 * (same - 1)
            if (same, rights) == (level, attributes) and (first + step, frame + step) == (dfn, mfn):
                found[-1] = (first, same, frame, rights, count + 1)
                continue
        found.append((dfn, level, mfn, attributes, 1))
    return found


def recorded_shape(wanted: dict[str, Any], record: Record, arena: int) -> dict[str, Any]:
    """The same from a record, as far as it says."""
    shape: dict[str, Any] = {name: wanted[name] for name in ("dying", "devices") if name in wanted}
    if "root" in wanted:
        shape["root"] = record.frame(wanted["root"], 0) if wanted["root"] else None
    if "tables" in wanted:
        shape["tables"] = [(t["level"], int(t["dfn"], 0), record.frame(t["at"], 0)) for t in wanted["tables"]]
        if any("marker_words" in table for table in wanted["tables"]):
            shape["marker_words"] = [
                (table["level"], int(table["dfn"], 0), (index, _without_marker(text)))
                for table in wanted["tables"]
                for index, text in table.get("marker_words", ())
            ]
    if "leaves" in wanted:
        leaves: list[Leaf] = []
        for leaf in wanted["leaves"]:
            size = 1 << 9 * (leaf["level"] - 1)
            dfn, mfn = int(leaf["dfn"], 0), record.frame(leaf["frame"], arena)
            leaves.extend(
                (dfn + k * size, leaf["level"], mfn + k * size, int(leaf["attrs"], 16))
                for k in range(number_below(leaf["entries"], RESIDUE))
            )
        shape["leaves"] = runs(leaves)
    return shape
