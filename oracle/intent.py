# SPDX-License-Identifier: GPL-2.0-or-later
"""What software was asked to map, as ranges: the third opinion beside two hardware halves that read tables."""

from typing import Any, Final, NamedTuple

from sortedcontainers import SortedDict


class Range(NamedTuple):
    """``pages`` pages from device frame ``dfn`` on lead to frames from ``mfn`` on.

    ``permission``: 1 read, 2 write, 3 both.
    """

    dfn: int
    mfn: int
    pages: int
    permission: int


class Intent:
    """The mappings of one context."""

    def __init__(self) -> None:
        self._ranges: Final[Any] = SortedDict()

    def add(self, dfn: int, mfn: int, pages: int, permission: int) -> None:
        """Note a new mapping; nothing is mapped there yet."""
        if pages:
            self._ranges[dfn] = Range(dfn, mfn, pages, permission)

    def remove(self, dfn: int, pages: int) -> None:
        """Forget ``pages`` pages from ``dfn`` on, whatever they are."""
        end = dfn + pages
        at = max(self._ranges.bisect_right(dfn) - 1, 0)
        touched = []
        for start in self._ranges.islice(at):
            if start >= end:
                break
            touched.append(self._ranges[start])
        for old in touched:
            if old.dfn + old.pages <= dfn:
                continue
            del self._ranges[old.dfn]
            if old.dfn < dfn:
                self._ranges[old.dfn] = old._replace(pages=dfn - old.dfn)
            if old.dfn + old.pages > end:
                cut = end - old.dfn
                self._ranges[end] = Range(end, old.mfn + cut, old.pages - cut, old.permission)

    def find(self, dfn: int) -> tuple[int, int] | None:
        """(frame, permission) of a device frame, ``None`` if it is not mapped."""
        at = self._ranges.bisect_right(dfn) - 1
        if at < 0:
            return None
        found = self._ranges.peekitem(at)[1]
        if dfn >= found.dfn + found.pages:
            return None
        return found.mfn + dfn - found.dfn, found.permission

    def room(self, dfn: int, pages: int) -> int:
        """How many of ``pages`` pages from ``dfn`` on come before the first that is mapped."""
        if self.find(dfn) is not None:
            return 0
        at = self._ranges.bisect_left(dfn)
        if at < len(self._ranges):
            return min(pages, int(self._ranges.peekitem(at)[0]) - dfn)
        return pages

    def ranges(self) -> list[Range]:
        """Everything that is mapped, in order."""
        return list(self._ranges.values())
