# SPDX-License-Identifier: GPL-2.0-or-later
"""Cache tags of a unit: VT-d's domain ids, an SMMU's VMIDs."""

from typing import Final


class Tags:
    """The numbers below ``count``, the lowest free one first.

    There are up to 2^16 of them and few are ever used, so that a snapshot keeps what lies below the highest.
    """

    def __init__(self, count: int) -> None:
        self._used: Final = bytearray(count)
        self._end = 0
        """From here on none was ever taken."""

    def take(self) -> int | None:
        """The lowest free tag, ``None`` if all are in use."""
        tag = self._used.find(0)
        if tag < 0:
            return None
        self._used[tag] = 1
        self._end = max(self._end, tag + 1)
        return tag

    def give(self, tag: int) -> None:
        """``tag`` is free again."""
        self._used[tag] = 0

    def save(self) -> bytes:
        return bytes(self._used[: self._end])

    def restore(self, state: bytes) -> None:
        end = max(self._end, len(state))
        self._used[:end] = state.ljust(end, b"\0")
        self._end = len(state)
