# SPDX-License-Identifier: GPL-2.0-or-later
"""Capture files: every byte order and resolution reads the same, and a bad file is one clear line."""

import gzip
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine.network import CapturedFrame, CaptureError, PcapWriter, read_capture

SECOND = 1_000_000_000
FRAMES = [(b"\x02" * 14, 7 * SECOND + 5000), (bytes(range(200)), 1_700_000_000 * SECOND + 999_999_000), (b"", 0)]


def classic(order, magic, link=1, version=(2, 4), frames=FRAMES):
    scale = 1000 if magic == 0xA1B2C3D4 else 1
    out = struct.pack(order + "IHHiIII", magic, *version, 0, 0, 65535, link)
    for data, when in frames:
        out += struct.pack(order + "IIII", when // SECOND, when % SECOND // scale, len(data), len(data)) + data
    return out


def block(order, kind, body):
    body += b"\0" * (-len(body) % 4)
    length = 12 + len(body)
    return struct.pack(order + "II", kind, length) + body + struct.pack(order + "I", length)


def section(order):
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order, link=1, resolution=None, snap=0):
    options = b""
    if resolution is not None:
        options = struct.pack(order + "HHB3xHH", 9, 1, resolution, 0, 0)
    return block(order, 1, struct.pack(order + "HHI", link, 0, snap) + options)


def enhanced(order, data, ticks, number=0, wire_length=None):
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), wire_length or len(data))
    return block(order, 6, head + data)


def write(tmp_path, content):
    path = tmp_path / "in.pcap"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D])
def test_classic_files_of_every_kind_read_the_same(tmp_path, order, magic):
    frames = list(read_capture(write(tmp_path, classic(order, magic))))
    assert frames == [CapturedFrame(data, when, len(data)) for data, when in FRAMES]
    assert all(frame.complete for frame in frames)


def test_a_frame_cut_by_the_capture_says_so(tmp_path):
    raw = classic("<", 0xA1B2C3D4, frames=[]) + struct.pack("<IIII", 0, 0, 4, 60) + b"abcd"
    (frame,) = read_capture(write(tmp_path, raw))
    assert (frame.data, frame.wire_length, frame.complete) == (b"abcd", 60, False)


def test_link_type_ignores_the_frame_check_sequence_bits(tmp_path):
    raw = classic("<", 0xA1B2C3D4, link=1 | 1 << 26 | 2 << 28)
    assert len(list(read_capture(write(tmp_path, raw)))) == 3


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("resolution", "ticks"), [(None, 10**6), (9, 10**9), (0x80 | 20, 1 << 20)])
def test_pcapng_packets_of_every_resolution(tmp_path, order, resolution, ticks):
    raw = section(order) + interface(order, resolution=resolution)
    raw += block(order, 0x0BAD, b"skipped") + enhanced(order, b"\x02" * 15, 3 * ticks) + enhanced(order, b"y" * 60, 0)
    frames = list(read_capture(write(tmp_path, raw)))
    assert frames == [CapturedFrame(b"\x02" * 15, 3 * SECOND, 15), CapturedFrame(b"y" * 60, 0, 60)]


def test_pcapng_simple_packets_and_a_second_section_of_the_other_byte_order(tmp_path):
    raw = section("<") + interface("<", snap=20) + block("<", 3, struct.pack("<I", 60) + b"z" * 20)
    raw += section(">") + interface(">") + enhanced(">", b"w" * 17, 1_000_000)
    frames = list(read_capture(write(tmp_path, raw)))
    assert frames == [CapturedFrame(b"z" * 20, 0, 60), CapturedFrame(b"w" * 17, SECOND, 17)]


GOOD = classic("<", 0xA1B2C3D4)
GOOD_NG = section("<") + interface("<") + enhanced("<", b"q" * 60, 0)
BAD = {
    "empty": (b"", 0, "the file is empty"),
    "magic": (b"hello, world", 0, "0x68656c6c does not begin a pcap"),
    "short magic": (b"\xd4\xc3", 0, "0xd4c3 does not begin a pcap"),
    "gzip": (gzip.compress(GOOD), 0, "compressed with gzip; unpack it first"),
    "header": (GOOD[:20], 20, "ends inside its header"),
    "version": (classic("<", 0xA1B2C3D4, version=(3, 0)), 4, "version 3.0 is not 2.x"),
    "link": (classic(">", 0xA1B23C4D, link=113), 20, "link type 113 is not Ethernet"),
    "record header": (GOOD[:-3], 24 + 16 + 14 + 16 + 200, "inside a record's header"),
    "record": (GOOD[:50], 40, "a record of 14 bytes ends after 10"),
    "length": (GOOD[:24] + struct.pack("<IIII", 0, 0, 1 << 30, 60), 32, "claims 1073741824 bytes"),
    "ng order": (section("<")[:8] + b"\x11\x22\x33\x44" + section("<")[12:], 8, "0x11223344 is not pcapng's"),
    "ng cut": (GOOD_NG[:-5], len(GOOD_NG) - 92, "is cut short"),
    "ng header": (GOOD_NG + b"\x06\0", len(GOOD_NG), "inside a block's header"),
    "ng length": (section("<") + struct.pack("<II", 6, 13), 32, "claims 13 bytes"),
    "ng interface": (section("<") + enhanced("<", b"q", 0), 36, "interface 0, which is not described"),
    "ng link": (section("<") + interface("<", link=105) + enhanced("<", b"q", 0), 48, "105 is not Ethernet"),
    "ng packet": (section("<") + interface("<") + block("<", 6, bytes(8)), 48, "shorter than its fixed part"),
    "ng size": (section("<") + interface("<") + block("<", 3, struct.pack("<I", 9)), 48, "does not fit its block"),
    "ng short interface": (section("<") + block("<", 1, bytes(4)), 28, "shorter than its fixed part"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_with_place_cause_and_remedy(tmp_path, name):
    raw, offset, wrong = BAD[name]
    path = write(tmp_path, raw)
    with pytest.raises(CaptureError) as caught:
        list(read_capture(path))
    text = str(caught.value)
    assert text.startswith(f"{path}: byte {offset}: ")
    assert wrong in text
    assert "; " in text and "\n" not in text


def test_files_that_cannot_be_opened_are_the_same_error(tmp_path):
    for path in (tmp_path / "missing.pcap", tmp_path):
        with pytest.raises(CaptureError, match="cannot be read: "):
            list(read_capture(path))
    with pytest.raises(CaptureError, match="cannot be written: "):
        PcapWriter(tmp_path / "no" / "such.pcap")


def test_frames_before_the_damage_are_read(tmp_path):
    reader = read_capture(write(tmp_path, GOOD[:-3]))
    assert [next(reader).data, next(reader).data] == [FRAMES[0][0], FRAMES[1][0]]
    with pytest.raises(CaptureError):
        next(reader)


@settings(max_examples=50, deadline=None)
@given(frames=st.lists(st.tuples(st.binary(max_size=300), st.integers(0, (1 << 32) * SECOND - 1)), max_size=6))
def test_what_is_written_is_read_back(tmp_path_factory, frames):
    path = tmp_path_factory.mktemp("pcap") / "out.pcap"
    with PcapWriter(path) as writer:
        for data, when in frames:
            writer.write(data, when)
    assert [(frame.data, frame.time_ns) for frame in read_capture(path)] == frames


@settings(max_examples=150, deadline=None)
@given(
    raw=st.sampled_from([GOOD, GOOD_NG, classic(">", 0xA1B23C4D)]),
    edits=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=6),
    end=st.integers(0, 300),
)
def test_a_damaged_file_gives_frames_or_the_one_error(tmp_path_factory, raw, edits, end):
    damaged = bytearray(raw)
    for at, value in edits:
        damaged[at % len(raw)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.pcap"
    path.write_bytes(damaged[: len(raw) - end % len(raw)])
    try:
        assert all(isinstance(frame, CapturedFrame) for frame in read_capture(path))
    except CaptureError as error:
        assert "\n" not in str(error)
