# SPDX-License-Identifier: GPL-2.0-or-later
"""Capture files: frames out of classic pcap and pcapng, frames into classic pcap.

Sources: draft-ietf-opsawg-pcap (classic format, both byte orders, microseconds and nanoseconds); the pcapng
reader is in :mod:`machine.network.pcapng`.  Only Ethernet (link type 1) is read, since that is what a wire carries.
"""

import time
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import BinaryIO, Final

from machine.network.capture import LINKTYPE_ETHERNET, MAX_RECORD, CapturedFrame, CaptureError
from machine.network.pcapng import MAGIC_PCAPNG, read_blocks

MAGIC_US: Final = 0xA1B2C3D4
MAGIC_NS: Final = 0xA1B23C4D

_GZIP: Final = b"\x1f\x8b"
_FILE_HEADER: Final = "IHHiIII"
_RECORD_HEADER: Final = "IIII"
_REMEDY_CUT: Final = "capture again, or cut the file there with editcap"
_REMEDY_FORMAT: Final = "save it as pcap (tcpdump -w, or Wireshark: Save As, pcap)"


def read_capture(path: str | PathLike[str]) -> Iterator[CapturedFrame]:
    """The frames of a pcap or pcapng file in order, read as they are asked for; :class:`CaptureError`."""
    try:
        with Path(path).open("rb") as file:
            magic = file.read(4)
            if magic == MAGIC_PCAPNG:
                yield from read_blocks(file, path)
            else:
                yield from _read_classic(file, magic, path)
    except OSError as error:
        remedy = "give the path of a readable pcap file"
        raise CaptureError(path, 0, f"cannot be read: {error.strerror or error}", remedy) from error


def _read_classic(file: BinaryIO, magic: bytes, path: str | PathLike[str]) -> Iterator[CapturedFrame]:
    order, scale = _byte_order(magic, path)
    header = Struct(order + _FILE_HEADER[1:])
    raw = file.read(header.size)
    if len(raw) < header.size:
        raise CaptureError(path, 4 + len(raw), "the file ends inside its header", _REMEDY_CUT)
    major, minor, _, _, _, link = header.unpack(raw)
    if major != 2:
        raise CaptureError(path, 4, f"pcap version {major}.{minor} is not 2.x", _REMEDY_FORMAT)
    if link & 0xFFFF != LINKTYPE_ETHERNET:
        remedy = "only Ethernet (1) can be replayed; capture on an Ethernet interface, not on 'any'"
        raise CaptureError(path, 20, f"link type {link & 0xFFFF} is not Ethernet", remedy)
    record = Struct(order + _RECORD_HEADER)
    offset = 4 + header.size
    while raw := file.read(record.size):
        if len(raw) < record.size:
            raise CaptureError(path, offset, "the file ends inside a record's header", _REMEDY_CUT)
        seconds, fraction, length, wire_length = record.unpack(raw)
        if length > MAX_RECORD:
            raise CaptureError(path, offset + 8, f"a record claims {length} bytes, over {MAX_RECORD}", _REMEDY_CUT)
        data = file.read(length)
        if len(data) < length:
            wrong = f"a record of {length} bytes ends after {len(data)}"
            raise CaptureError(path, offset + record.size, wrong, _REMEDY_CUT)
        yield CapturedFrame(data, seconds * 1_000_000_000 + fraction * scale, wire_length)
        offset += record.size + length


def _byte_order(magic: bytes, path: str | PathLike[str]) -> tuple[str, int]:
    """The struct prefix of the file's byte order and how many nanoseconds its time fraction counts."""
    if not magic:
        raise CaptureError(path, 0, "the file is empty", "give a pcap file with at least a header")
    for order in ("<", ">"):
        number = Struct(order + "I").unpack(magic.ljust(4, b"\0"))[0]
        if number == MAGIC_US:
            return order, 1000
        if number == MAGIC_NS:
            return order, 1
    if magic.startswith(_GZIP):
        raise CaptureError(path, 0, "the file is compressed with gzip", "unpack it first (gunzip)")
    raise CaptureError(path, 0, f"0x{magic.hex()} does not begin a pcap or pcapng file", _REMEDY_FORMAT)


class PcapWriter:
    """Writes frames to a classic pcap file: little-endian, nanoseconds, Ethernet.  A context manager."""

    def __init__(self, path: str | PathLike[str], clock: Callable[[], int] = time.time_ns) -> None:
        try:
            self._file: Final = Path(path).open("wb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            wrong = f"cannot be written: {error.strerror or error}"
            raise CaptureError(path, 0, wrong, "give a path in a writable folder") from error
        self._clock: Final = clock
        self._record: Final = Struct("<" + _RECORD_HEADER)
        self.frames = 0
        header = Struct("<" + _FILE_HEADER).pack(MAGIC_NS, 2, 4, 0, 0, MAX_RECORD, LINKTYPE_ETHERNET)
        self._file.write(header)

    def write(self, frame: bytes, time_ns: int | None = None) -> None:
        """Append ``frame``, captured at ``time_ns`` (default: now)."""
        seconds, fraction = divmod(self._clock() if time_ns is None else time_ns, 1_000_000_000)
        self._file.write(self._record.pack(seconds & 0xFFFF_FFFF, fraction, len(frame), len(frame)))
        self._file.write(frame)
        self.frames += 1

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "PcapWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
