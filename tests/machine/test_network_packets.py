# SPDX-License-Identifier: GPL-2.0-or-later
"""The few packets that the in-process peer speaks, against slower or published arithmetic."""

from hypothesis import example, given
from hypothesis import strategies as st

from machine.network.packets import (
    ARP_REQUEST,
    ICMP_ECHO_REQUEST,
    Arp,
    Echo,
    arp,
    checksum,
    echo,
    ip,
    parse_arp,
    parse_echo,
)
from machine.network.peer import PeerWire

A, B = bytes.fromhex("02509e000002"), bytes.fromhex("02509e000001")


def slow_checksum(data):
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff\xff")
@example(bytes(20))
@example(bytes.fromhex("0001f203f4f5f6f7"))
def test_checksum_equals_the_sum_word_by_word(data):
    assert checksum(data) == slow_checksum(data)


def test_the_example_of_rfc_1071():
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2 ^ 0xFFFF


def test_what_is_built_is_parsed():
    assert parse_arp(arp(ARP_REQUEST, A, ip("10.9.0.2"), B, ip("10.9.0.1"))) == Arp(
        1, A, ip("10.9.0.2"), bytes(6), ip("10.9.0.1")
    )
    frame = echo(ICMP_ECHO_REQUEST, (A, B), (ip("10.9.0.2"), ip("10.9.0.1")), 7, 9, b"abc")
    assert parse_echo(frame) == Echo(8, A, ip("10.9.0.2"), ip("10.9.0.1"), 7, 9, b"abc")
    assert parse_echo(frame + bytes(18)) == parse_echo(frame), "padding to the minimum frame size"


@given(st.integers(14, 60), st.integers(1, 255))
def test_one_damaged_byte_of_an_echo_is_noticed(at, change):
    frame = bytearray(echo(ICMP_ECHO_REQUEST, (A, B), (ip("10.9.0.2"), ip("10.9.0.1")), 7, 9, b"payload" * 4))
    frame[at] ^= change
    assert parse_echo(bytes(frame)) is None


@given(st.binary(max_size=120), st.sampled_from([b"\x08\x00", b"\x08\x06"]))
def test_the_peer_survives_any_frame(tail, kind):
    peer = PeerWire()
    peer.send(B + A + kind + tail)
    peer.send(B + A + kind + b"\x45" + tail)
    assert peer.answered + peer.ignored + peer.lost == 2
