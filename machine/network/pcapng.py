# SPDX-License-Identifier: GPL-2.0-or-later
"""pcapng's simplest forms: sections, Ethernet interfaces, enhanced and simple packet blocks.

Source: draft-ietf-opsawg-pcapng (block structure 3.1, SHB 4.1, IDB 4.2, EPB 4.3, SPB 4.4).  Other blocks are skipped by
their length.  A packet of an interface that is not Ethernet is an error, for replaying half of a capture misleads.
"""

from collections.abc import Iterator
from os import PathLike
from typing import BinaryIO, Final, Literal, NamedTuple

from machine.network.capture import LINKTYPE_ETHERNET, MAX_RECORD, CapturedFrame, CaptureError

MAGIC_PCAPNG: Final = b"\x0a\x0d\x0d\x0a"
BLOCK_SECTION: Final = 0x0A0D0D0A
BLOCK_INTERFACE: Final = 1
BLOCK_SIMPLE: Final = 3
BLOCK_ENHANCED: Final = 6
OPTION_TSRESOL: Final = 9
BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
MAX_BLOCK: Final = 1 << 24

_REMEDY: Final = "convert it with: editcap -F pcap IN OUT"
_Order = Literal["little", "big"]


class _Interface(NamedTuple):
    link: int
    snap_length: int
    ticks_per_second: int


def read_blocks(file: BinaryIO, path: str | PathLike[str]) -> Iterator[CapturedFrame]:
    """The frames of a pcapng file whose first four bytes have been read; :class:`CaptureError`."""
    order: _Order = "little"
    interfaces: list[_Interface] = []
    offset = 0
    kind_bytes = MAGIC_PCAPNG
    while kind_bytes:
        head = kind_bytes + file.read(8 if kind_bytes == MAGIC_PCAPNG else 4)
        if len(head) < (12 if kind_bytes == MAGIC_PCAPNG else 8):
            raise CaptureError(path, offset, "the file ends inside a block's header", _REMEDY)
        if kind_bytes == MAGIC_PCAPNG:
            order = _section_order(head[8:], path, offset)
            interfaces = []
        kind, length = int.from_bytes(head[:4], order), int.from_bytes(head[4:8], order)
        if length % 4 or not len(head) + 4 <= length <= MAX_BLOCK:
            raise CaptureError(path, offset + 4, f"a block claims {length} bytes", _REMEDY)
        body = file.read(length - len(head))
        if len(body) < length - len(head):
            raise CaptureError(path, offset, f"a block of {length} bytes is cut short", _REMEDY)
        frame = _block(kind, body[:-4], order, interfaces, path, offset)
        if frame is not None:
            yield frame
        offset += length
        kind_bytes = file.read(4)


def _section_order(magic: bytes, path: str | PathLike[str], offset: int) -> _Order:
    orders: tuple[_Order, _Order] = ("little", "big")
    for order in orders:
        if int.from_bytes(magic, order) == BYTE_ORDER_MAGIC:
            return order
    raise CaptureError(path, offset + 8, f"0x{magic.hex()} is not pcapng's byte-order magic", _REMEDY)


def _block(
    kind: int,
    body: bytes,
    order: _Order,
    interfaces: list[_Interface],
    path: str | PathLike[str],
    offset: int,
) -> CapturedFrame | None:
    """Note an interface, or return a packet's frame; ``None`` for everything that is not a packet."""
    if kind == BLOCK_INTERFACE:
        interfaces.append(_interface(body, order, path, offset))
        return None
    if kind not in (BLOCK_SIMPLE, BLOCK_ENHANCED):
        return None
    fixed = 20 if kind == BLOCK_ENHANCED else 4
    if len(body) < fixed:
        raise CaptureError(path, offset, "a packet block is shorter than its fixed part", _REMEDY)
    words = [int.from_bytes(body[at : at + 4], order) for at in range(0, fixed, 4)]
    number = words[0] if kind == BLOCK_ENHANCED else 0
    if number >= len(interfaces):
        raise CaptureError(path, offset + 8, f"a packet of interface {number}, which is not described", _REMEDY)
    interface = interfaces[number]
    if interface.link != LINKTYPE_ETHERNET:
        remedy = "only Ethernet (1) can be replayed; capture on an Ethernet interface, not on 'any'"
        raise CaptureError(path, offset, f"link type {interface.link} is not Ethernet", remedy)
    if kind == BLOCK_ENHANCED:
        _, high, low, length, wire_length = words
        time_ns = (high << 32 | low) * 1_000_000_000 // interface.ticks_per_second
        data = body[fixed:]
    else:
        wire_length = words[0]
        length = min(wire_length, interface.snap_length or wire_length)
        time_ns = 0
        data = body[fixed:]
    if length > len(data) or length > MAX_RECORD:
        raise CaptureError(path, offset, f"a packet of {length} bytes does not fit its block", _REMEDY)
    return CapturedFrame(data[:length], time_ns, wire_length)


def _interface(body: bytes, order: _Order, path: str | PathLike[str], offset: int) -> _Interface:
    if len(body) < 8:
        raise CaptureError(path, offset, "an interface block is shorter than its fixed part", _REMEDY)
    ticks = 1_000_000
    at = 8
    while at + 4 <= len(body):
        code, size = int.from_bytes(body[at : at + 2], order), int.from_bytes(body[at + 2 : at + 4], order)
        if code == 0:
            break
        if code == OPTION_TSRESOL and size >= 1 and at + 4 < len(body):
            resolution = body[at + 4]
            ticks = 1 << (resolution & 0x7F) if resolution & 0x80 else 10**resolution
        at += 4 + (size + 3 & ~3)
    return _Interface(int.from_bytes(body[:2], order), int.from_bytes(body[4:8], order), ticks)
