# SPDX-License-Identifier: GPL-2.0-or-later
"""The few packets that a ping needs: ARP (RFC 826), IPv4 without options or fragments (RFC 791), ICMP echo (RFC 792).

Builders return whole Ethernet frames.  Addresses are bytes: 6 for a MAC, 4 for IPv4.
"""

from ipaddress import IPv4Address
from struct import Struct
from typing import Final, NamedTuple

BROADCAST: Final = b"\xff" * 6
ETHERTYPE_IPV4: Final = b"\x08\x00"
ETHERTYPE_ARP: Final = b"\x08\x06"
_ARP_ETHERNET_IPV4: Final = bytes.fromhex("000108000604")
ARP_REQUEST: Final = 1
ARP_REPLY: Final = 2
ICMP_ECHO_REPLY: Final = 0
ICMP_ECHO_REQUEST: Final = 8
_PROTOCOL_ICMP: Final = 1

_IPV4: Final = Struct(">BBHHHBBH4s4s")
_ICMP: Final = Struct(">BBHHH")


class Arp(NamedTuple):
    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes


class Echo(NamedTuple):
    """An ICMP echo request or reply whose checksums are right."""

    kind: int
    source_mac: bytes
    source_ip: bytes
    target_ip: bytes
    identifier: int
    sequence: int
    payload: bytes


def ip(text: str) -> bytes:
    """The four bytes of a dotted address."""
    return IPv4Address(text).packed


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071): 0 over data that carries its own right checksum."""
    if len(data) & 1:
        data += b"\0"
    # 2^16 is 1 modulo 65535, so the number that the bytes spell is congruent to the sum of its 16-bit words.
    folded = int.from_bytes(data, "big") % 0xFFFF
    if folded == 0 and any(data):
        folded = 0xFFFF
    return folded ^ 0xFFFF


def arp(operation: int, sender_mac: bytes, sender_ip: bytes, target_mac: bytes, target_ip: bytes) -> bytes:
    """An ARP request (broadcast) or reply (to its target)."""
    if operation == ARP_REQUEST:
        header, target_mac = BROADCAST + sender_mac + ETHERTYPE_ARP, bytes(6)
    else:
        header = target_mac + sender_mac + ETHERTYPE_ARP
    body = operation.to_bytes(2, "big") + sender_mac + sender_ip + target_mac + target_ip
    return header + _ARP_ETHERNET_IPV4 + body


def parse_arp(frame: bytes) -> Arp | None:
    """``None`` unless ``frame`` is ARP for IPv4 over Ethernet."""
    if len(frame) < 42 or frame[12:14] != ETHERTYPE_ARP or frame[14:20] != _ARP_ETHERNET_IPV4:
        return None
    operation = int.from_bytes(frame[20:22], "big")
    return Arp(operation, frame[22:28], frame[28:32], frame[32:38], frame[38:42])


def echo(
    kind: int,
    macs: tuple[bytes, bytes],
    ips: tuple[bytes, bytes],
    identifier: int,
    sequence: int,
    payload: bytes,
) -> bytes:
    """An ICMP echo message from ``macs[0]``/``ips[0]`` to ``macs[1]``/``ips[1]``; ``payload`` <= 65507 bytes."""
    message = _ICMP.pack(kind, 0, 0, identifier, sequence) + payload
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    header = _IPV4.pack(0x45, 0, 20 + len(message), 0, 0x4000, 64, _PROTOCOL_ICMP, 0, ips[0], ips[1])
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    return macs[1] + macs[0] + ETHERTYPE_IPV4 + header + message


def parse_echo(frame: bytes) -> Echo | None:
    """``None`` unless ``frame`` is an unfragmented ICMP echo request or reply with the right checksums."""
    if len(frame) < 42 or frame[12:14] != ETHERTYPE_IPV4:
        return None
    version, _, length, _, fragment, _, protocol, _, source, target = _IPV4.unpack_from(frame, 14)
    header = (version & 15) * 4
    if version >> 4 != 4 or header < 20 or length < header + 8 or 14 + length > len(frame):
        return None
    if protocol != _PROTOCOL_ICMP or fragment & 0x3FFF or checksum(frame[14 : 14 + header]):
        return None
    message = frame[14 + header : 14 + length]
    kind, code, _, identifier, sequence = _ICMP.unpack_from(message)
    if kind not in (ICMP_ECHO_REQUEST, ICMP_ECHO_REPLY) or code or checksum(message):
        return None
    return Echo(kind, frame[6:12], source, target, identifier, sequence, message[8:])
