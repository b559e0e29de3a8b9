# SPDX-License-Identifier: GPL-2.0-or-later
"""A struct's bytes as a picture: eight to a row (four on a narrow terminal), in characters or as SVG."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Final

from abi.layout import Layout

ROW: Final = 8
"""Bytes to a row, where there is room for them."""
_CELL: Final = 8
"""Characters to a byte; a row of eight and its offset are 71 wide."""
_MARGIN: Final = 6
NARROWEST: Final = _MARGIN + ROW // 2 * _CELL + 1
"""Columns below which no row fits."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of one row: bytes ``first`` up to ``end`` of it, and what is there."""

    first: int
    end: int
    label: str
    kind: str
    """A direction, or ``hole``."""


def rows(layout: Layout, across: int = ROW) -> list[list[Segment]]:
    """The struct in rows of ``across`` bytes, as segments that cover every byte; unions as the case selected."""
    owner: list[tuple[str, str]] = [("", "hole")] * layout.size
    for member in layout.members:
        for at in range(member.offset, member.end):
            owner[at] = (member.plain.rpartition(".")[2], member.direction)
    result: list[list[Segment]] = []
    seen: set[str] = set()
    for base in range(0, layout.size, across):
        line: list[Segment] = []
        at = base
        while at < min(base + across, layout.size):
            end = at
            while end < min(base + across, layout.size) and owner[end] == owner[at]:
                end += 1
            name, kind = owner[at]
            label = f"({name})" if name in seen and name else name
            seen.add(name)
            line.append(Segment(at - base, end - base, label, kind))
            at = end
        result.append(line)
    return result


def text(layout: Layout, width: int = 80) -> Iterator[str]:
    """The picture in characters, at most ``width`` wide; nothing if that is less than :data:`NARROWEST`."""
    across = next((n for n in (ROW, ROW // 2) if _MARGIN + n * _CELL < width), 0)
    if not across:
        return
    lines = rows(layout, across)
    yield " " * (_MARGIN + 1) + "".join(f"{f'+{n}':<{_CELL}}" for n in range(min(across, layout.size))).rstrip()
    above: list[int] = []
    for number, line in enumerate(lines):
        below = _edges(line)
        yield " " * _MARGIN + _rule(above, below)
        yield f"{number * across:>{_MARGIN - 1}} " + "".join(_cell(segment) for segment in line) + "│"
        above = below
    yield " " * _MARGIN + _rule(above, [])


def _edges(line: list[Segment]) -> list[int]:
    return [segment.first * _CELL for segment in line] + [line[-1].end * _CELL]


def _cell(segment: Segment) -> str:
    width = (segment.end - segment.first) * _CELL - 1
    if segment.kind == "hole":
        return "│" + "░" * width
    arrow = {"in": "→", "out": "←", "inout": "↔"}.get(segment.kind, "")
    label = f"{arrow} {segment.label}" if arrow else segment.label
    return "│" + (label if len(label) <= width else f"{label[: width - 1]}…").center(width)


_JUNCTION: Final = {
    (False, False, True, True): "─",
    (True, False, True, True): "┴",
    (False, True, True, True): "┬",
    (True, True, True, True): "┼",
    (False, True, False, True): "┌",
    (False, True, True, False): "┐",
    (True, False, False, True): "└",
    (True, False, True, False): "┘",
    (True, True, False, True): "├",
    (True, True, True, False): "┤",
}


def _rule(above: list[int], below: list[int]) -> str:
    """The line between two rows, whose edges are columns."""
    last = max(above[-1:] + below[-1:])
    out = []
    for column in range(last + 1):
        up, down = column in above, column in below
        out.append(_JUNCTION[up, down, column > 0, column < last] if up or down else "─")
    return "".join(out)


_FILL: Final = {
    "in": "#dce9f9",
    "out": "#fbe3d6",
    "inout": "#fff2c4",
    "reserved": "#eeeeee",
    "hole": "#d9d9d9",
}
_PX: Final = 84
_HIGH: Final = 34
_LEFT: Final = 52


def svg(pictures: list[tuple[str, Layout]], title: str) -> str:
    """One SVG document with the structs below each other, each under its caption."""
    body: list[str] = []
    y = 64
    for caption, layout in pictures:
        body.append(f'<text x="10" y="{y}" class="caption">{escape(caption)}</text>')
        y += 10
        for number, line in enumerate(rows(layout)):
            body.append(f'<text x="{_LEFT - 8}" y="{y + 22}" class="offset">{number * ROW}</text>')
            for segment in line:
                body += _box(segment, y)
            y += _HIGH
        y += 34
    width = _LEFT + ROW * _PX + 12
    head = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}">',
        "<style>text{font:13px sans-serif}.title{font-size:17px;font-weight:bold}.caption{font-weight:bold}"
        ".offset{text-anchor:end;fill:#555}.label{text-anchor:middle}rect{stroke:#333;stroke-width:1}</style>",
        f'<rect x="0" y="0" width="{width}" height="{y}" style="fill:white;stroke:none"/>',
        f'<text x="10" y="24" class="title">{escape(title)}</text>',
        *_legend(),
    ]
    return "\n".join([*head, *body, "</svg>"]) + "\n"


def _box(segment: Segment, y: int) -> list[str]:
    x = _LEFT + segment.first * _PX
    width = (segment.end - segment.first) * _PX
    parts = [f'<rect x="{x}" y="{y}" width="{width}" height="{_HIGH}" fill="{_FILL[segment.kind or "reserved"]}"/>']
    label = segment.label or "hole"
    parts.append(f'<text x="{x + width // 2}" y="{y + 22}" class="label">{escape(label)}</text>')
    return parts


def _legend() -> list[str]:
    parts = []
    for number, (kind, fill) in enumerate(_FILL.items()):
        x = _LEFT + number * 120
        parts.append(f'<rect x="{x}" y="34" width="14" height="14" fill="{fill}"/>')
        parts.append(f'<text x="{x + 20}" y="46">{"in/out" if kind == "inout" else kind}</text>')
    return parts
