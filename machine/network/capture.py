# SPDX-License-Identifier: GPL-2.0-or-later
"""What a capture file holds, and the one way in which reading it goes wrong."""

from os import PathLike, fspath
from typing import Final, NamedTuple

LINKTYPE_ETHERNET: Final = 1
MAX_RECORD: Final = 0x40000
"""Bytes that one record may hold; a longer one means a damaged length (as libpcap's MAXIMUM_SNAPLEN)."""


class CapturedFrame(NamedTuple):
    """One frame of a capture."""

    data: bytes
    time_ns: int
    """Nanoseconds since 1970, as captured; 0 where the format keeps no time."""
    wire_length: int
    """Bytes that were on the cable; more than ``len(data)`` when the capture kept only the beginning."""

    @property
    def complete(self) -> bool:
        return len(self.data) >= self.wire_length


class CaptureError(Exception):
    """A capture file that cannot be used: which file, where in it, what is wrong, what to do.  One line."""

    def __init__(self, path: str | PathLike[str], offset: int, wrong: str, remedy: str) -> None:
        super().__init__(f"{fspath(path)}: byte {offset}: {wrong}; {remedy}")
        self.path = fspath(path)
        self.offset = offset
        self.wrong = wrong
        self.remedy = remedy
