# SPDX-License-Identifier: GPL-2.0-or-later
"""What is mapped as ranges, and where two lists of them differ."""

from collections.abc import Iterable, Iterator

from testbed.reachable import Leaf

Span = tuple[int, int, int, int]
"""(first dfn, end, machine frame - dfn, access)."""


def joined(leaves: list[Leaf]) -> Iterator[tuple[int, int, int, int]]:
    """Runs of leaves as ranges, alike neighbours joined whatever the sizes of their leaves."""
    start = end = delta = access = 0
    for leaf in leaves:
        rights = leaf.readable | leaf.writable << 1
        if leaf.dfn == end and leaf.mfn - leaf.dfn == delta and rights == access and end > start:
            end += leaf.pages
            continue
        if end > start:
            yield start, end, delta, access
        start, end, delta, access = leaf.dfn, leaf.dfn + leaf.pages, leaf.mfn - leaf.dfn, rights
    if end > start:
        yield start, end, delta, access


def without(spans: Iterable[Span], regions: Iterable[tuple[int, int]]) -> Iterator[Span]:
    """What is left of ranges when the pages of ``regions`` (first, last) are taken out."""
    regions = sorted(regions)
    for start, end, delta, access in spans:
        for first, last in regions:
            if first < end and last >= start:
                if first > start:
                    yield start, first, delta, access
                start = last + 1
        if start < end:
            yield start, end, delta, access


def diverge(expected: list[Span], found: list[Span]) -> Iterator[tuple[Span | None, Span | None]]:
    """Where two lists of ranges differ; alike neighbours in either may be joined or not."""
    left, right = _merge(expected), _merge(found)
    for k in range(max(len(left), len(right))):
        one = left[k] if k < len(left) else None
        other = right[k] if k < len(right) else None
        if one != other:
            yield one, other
            return


def _merge(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1][1] == span[0] and merged[-1][2:] == span[2:]:
            merged[-1] = (merged[-1][0], span[1], *span[2:])
        else:
            merged.append(span)
    return merged


def words(span: Span | None) -> str:
    if span is None:
        return "nothing more"
    start, end, delta, access = span
    rights = ("nothing", "r", "w", "rw")[access]
    return f"dfn {start:#x}+{end - start:#x} to frame {start + delta:#x} ({rights})"


def sample(at: int, pages: int) -> list[int]:
    """Pages worth trying: both ends, the middle, both sides of the next superpage's boundary."""
    if pages <= 4:
        return list(range(at, at + pages))
    boundary = (at | 511) + 1
    chosen = {at, at + 1, at + pages // 2, at + pages - 1}
    chosen.update(dfn for dfn in (boundary - 1, boundary) if dfn < at + pages)
    return sorted(chosen)
