# SPDX-License-Identifier: GPL-2.0-or-later
"""Wires: the real kernel in a namespace and the responder written here answer the same packets, built by hand."""

import os
import struct
import sys
import time

import pytest

from machine.network import RecordedWire, WireError, open_wire, read_capture
from machine.network.namespace import why_not
from machine.network.pcap import PcapWriter
from machine.network.peer import QUEUE_LIMIT, LoopWire, PeerWire

OURS, THEIRS = bytes.fromhex("02509e000002"), bytes.fromhex("02509e000001")
OUR_IP, THEIR_IP = bytes([10, 9, 0, 2]), bytes([10, 9, 0, 1])
LINKS = ("namespace", "tap")


def sum16(data):
    """RFC 1071, the slow way."""
    data += b"\0" * (len(data) & 1)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def who_has(target=THEIR_IP):
    return b"\xff" * 6 + OURS + bytes.fromhex("0806 0001 0800 0604 0001") + OURS + OUR_IP + bytes(6) + target


def ping(sequence, payload, damage=0):
    icmp = struct.pack(">BBHHH", 8, 0, 0, 0x5056, sequence) + payload
    icmp = icmp[:2] + struct.pack(">H", sum16(icmp) ^ damage) + icmp[4:]
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(icmp), 1, 0x4000, 64, 1, 0) + OUR_IP + THEIR_IP
    ip = ip[:10] + struct.pack(">H", sum16(ip)) + ip[12:]
    return THEIRS + OURS + b"\x08\x00" + ip + icmp


def check_pong(frame, sequence, payload):
    assert frame[:14] == OURS + THEIRS + b"\x08\x00"
    assert sum16(frame[14:34]) == 0
    assert frame[26:34] == THEIR_IP + OUR_IP
    message = frame[34 : 14 + struct.unpack(">H", frame[16:18])[0]]
    assert sum16(message) == 0
    assert message == struct.pack(">BBHHH", 0, 0, struct.unpack(">H", message[2:4])[0], 0x5056, sequence) + payload


def next_frame(wire, ethertype, seconds=30.0):
    """The next frame of the given type; a real kernel may say other things in between."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if wire.wait(deadline - time.monotonic()):
            frame = wire.receive()
            if frame is not None and frame[12:14] == ethertype:
                return frame
    raise AssertionError(f"no frame of type {ethertype.hex()} within {seconds} s")


def open_or_skip(kind, echo=False):
    if kind in LINKS and why_not():
        pytest.skip(why_not())
    try:
        return open_wire(kind, echo)
    except WireError as error:
        if kind != "tap":
            raise
        pytest.skip(str(error))


@pytest.fixture(params=[*LINKS, "in-process"])
def peer(request):
    wire = open_or_skip(request.param)
    yield wire
    wire.close()


@pytest.fixture(params=[*LINKS, "in-process"])
def loop(request):
    wire = open_or_skip(request.param, echo=True)
    yield wire
    wire.close()


def test_the_peer_answers_arp_and_pings_of_both_sizes(peer):
    peer.send(who_has())
    reply = next_frame(peer, b"\x08\x06")
    assert reply[:6] == OURS
    assert reply[20:32] == b"\x00\x02" + THEIRS + THEIR_IP
    for sequence, size in enumerate((56, 8972)):
        payload = bytes((index * 31 + sequence) & 0xFF for index in range(size))
        peer.send(ping(sequence, payload))
        check_pong(next_frame(peer, b"\x08\x00"), sequence, payload)
    assert peer.lost == 0


def test_the_peer_is_silent_to_a_damaged_checksum_and_a_strange_address(peer):
    peer.send(who_has())
    next_frame(peer, b"\x08\x06")
    peer.send(ping(1, b"x" * 56, damage=0x0100))
    peer.send(who_has(bytes([10, 9, 0, 77])))
    peer.send(ping(2, b"y" * 56))
    check_pong(next_frame(peer, b"\x08\x00"), 2, b"y" * 56)


def test_a_burst_of_jumbo_pings_is_answered_without_loss(peer):
    peer.send(who_has())
    next_frame(peer, b"\x08\x06")
    payload = b"\xa5" * 8972
    for sequence in range(100):
        peer.send(ping(sequence, payload))
    for sequence in range(100):
        check_pong(next_frame(peer, b"\x08\x00"), sequence, payload)
    assert peer.lost == 0


def test_nobody_speaks_unasked(peer):
    assert not peer.wait(0.05)
    assert peer.receive() is None


FRAMES = {
    "header only": OURS + THEIRS + b"\x08\x00",
    "ARP of 42 bytes": who_has(),
    "broken IPv4": OURS + THEIRS + b"\x08\x00" + b"\xff" * 1486,
    "IPv6": THEIRS + OURS + b"\x86\xdd" + b"\x60" + bytes(100),
    "unknown type": OURS + THEIRS + b"\x12\x34" + b"payload" * 9,
    "802.3 length": bytes.fromhex("0180c2000000") + OURS + b"\x00\x26" + b"\x42" * 38,
    "one VLAN tag": OURS + THEIRS + bytes.fromhex("8100 0005 0800") + b"tagged" * 9,
    "two VLAN tags": OURS + THEIRS + bytes.fromhex("88a8 0005 8100 0006 0800") + b"tagged" * 9,
    "full packet": OURS + THEIRS + b"\x08\x00" + bytes(9000),
    "full packet, tagged": OURS + THEIRS + bytes.fromhex("8100 2fff 0800") + bytes(9000),
    "largest": OURS + THEIRS + b"\x08\x00" + bytes(9004),
    "broadcast": b"\xff" * 6 + THEIRS + b"\x08\x00" + b"\x45" + bytes(60),
    "own source": THEIRS + THEIRS + b"\x08\x00" + b"\x45" + bytes(60),
}


def test_every_kind_of_frame_comes_back_as_it_was_sent(loop):
    for name, frame in FRAMES.items():
        loop.send(frame)
        assert loop.wait(2), name
        assert loop.receive() == frame, name
    assert not loop.wait(0.05)
    assert loop.lost == 0


def test_a_burst_comes_back_whole_and_in_order(loop):
    frames = [OURS + THEIRS + b"\x12\x34" + struct.pack(">I", number) * 375 for number in range(300)]
    for frame in frames:
        loop.send(frame)
    for frame in frames:
        assert loop.wait(2)
        assert loop.receive() == frame


def test_what_is_no_frame_is_lost_and_counted(loop):
    for frame in (b"", b"\0" * 13, b"\0" * 9019, b"\0" * 70000):
        loop.send(frame)
    assert loop.lost == 4
    assert not loop.wait(0.05)


def test_a_closed_wire_is_quiet(loop):
    loop.send(FRAMES["broadcast"])
    loop.close()
    loop.close()
    loop.send(FRAMES["broadcast"])
    assert loop.receive() is None
    assert not loop.wait(0)
    assert loop.lost == 1


def test_this_process_stays_in_its_own_namespaces(peer):
    before = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "user")]
    open_or_skip("namespace").close()
    assert [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "user")] == before


def test_auto_takes_the_namespace_where_there_is_one_and_says_why_where_not():
    wire = open_wire()
    reason = why_not()
    wire.close()
    assert ("namespace over" in wire.description) == (reason is None)
    if reason is not None:
        assert reason in wire.description
        assert "\n" not in reason


def test_auto_falls_back_when_the_child_fails(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    for echo, kind in ((False, PeerWire), (True, LoopWire)):
        wire = open_wire("auto", echo)
        assert isinstance(wire, kind)
        assert "no network namespace: the child failed with: exit status 1" in wire.description
    with pytest.raises(WireError, match="exit status 1"):
        open_wire("namespace")


def test_an_unknown_wire_is_refused_by_name():
    with pytest.raises(WireError, match="no wire named 'wifi'; choose one of auto, namespace"):
        open_wire("wifi")


def test_the_in_process_queue_is_bounded():
    wire = LoopWire()
    for _ in range(QUEUE_LIMIT + 3):
        wire.send(FRAMES["broadcast"])
    assert wire.lost == 3


def test_a_recorded_wire_keeps_both_directions_in_order(tmp_path):
    path = tmp_path / "out.pcap"
    wire = RecordedWire(PeerWire(), PcapWriter(path, clock=iter(range(10**18, 10**18 + 9)).__next__))
    question = who_has()
    wire.send(question)
    answer = wire.receive()
    assert wire.receive() is None
    assert "in-process peer" in wire.description
    wire.close()
    assert [(each.data, each.time_ns) for each in read_capture(path)] == [(question, 10**18), (answer, 10**18 + 1)]
