# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames on the wire: Ethernet II, ARP (RFC 826), IPv4 (RFC 791), ICMP echo (RFC 792), the checksum (RFC 1071).

Builders take and give bytes; parsers are total and answer ``None`` for anything that is not what they parse,
including a wrong checksum.  MAC addresses are 6 bytes, IP addresses 4 bytes.
"""

import struct
from typing import Final, NamedTuple

ETH_HLEN: Final = 14
ETH_ZLEN: Final = 60
"""Shortest frame without its check sequence."""
ETH_P_IP: Final = 0x0800
ETH_P_ARP: Final = 0x0806
ETH_BROADCAST: Final = b"\xff" * 6

IP_HLEN: Final = 20
ICMP_HLEN: Final = 8
IPPROTO_ICMP: Final = 1
ICMP_ECHOREPLY: Final = 0
ICMP_ECHO: Final = 8
ARP_REQUEST: Final = 1
ARP_REPLY: Final = 2

_ETH: Final = struct.Struct("!6s6sH")
_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
_IP: Final = struct.Struct("!BBHHHBBH4s4s")
_ICMP: Final = struct.Struct("!BBHHH")


class Ethernet(NamedTuple):
    destination: bytes
    source: bytes
    ethertype: int
    payload: bytes


class Arp(NamedTuple):
    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes


class Ipv4(NamedTuple):
    source: bytes
    destination: bytes
    protocol: int
    payload: bytes


class Echo(NamedTuple):
    kind: int
    """ICMP_ECHO or ICMP_ECHOREPLY."""
    ident: int
    sequence: int
    payload: bytes


def checksum(data: bytes) -> int:
    """The Internet checksum of ``data``: 0 over data that contains its own correct checksum.

    The ones' complement sum of the 16-bit words is the number that the bytes spell, modulo 2^16 - 1 (where 2^16
    is 1), and 2^16 - 1 rather than 0 unless every byte is 0.
    """
    number = int.from_bytes(data + b"\0" if len(data) & 1 else data)
    total = number % 0xFFFF
    return 0xFFFF - (total if total or not number else 0xFFFF)


def ethernet(destination: bytes, source: bytes, ethertype: int, payload: bytes) -> bytes:
    return _ETH.pack(destination, source, ethertype) + payload


def parse_ethernet(frame: bytes) -> Ethernet | None:
    if len(frame) < ETH_HLEN:
        return None
    destination, source, ethertype = _ETH.unpack_from(frame)
    return Ethernet(destination, source, ethertype, frame[ETH_HLEN:])


def arp(operation: int, sender_mac: bytes, sender_ip: bytes, target_mac: bytes, target_ip: bytes) -> bytes:
    return _ARP.pack(1, ETH_P_IP, 6, 4, operation, sender_mac, sender_ip, target_mac, target_ip)


def parse_arp(packet: bytes) -> Arp | None:
    if len(packet) < _ARP.size:
        return None
    hardware, protocol, hlen, plen, *fields = _ARP.unpack_from(packet)
    if (hardware, protocol, hlen, plen) != (1, ETH_P_IP, 6, 4):
        return None
    return Arp(*fields)


def ipv4(source: bytes, destination: bytes, protocol: int, payload: bytes, ident: int = 0) -> bytes:
    """A packet without options that must not be fragmented, time to live 64."""
    header = _IP.pack(0x45, 0, IP_HLEN + len(payload), ident & 0xFFFF, 0x4000, 64, protocol, 0, source, destination)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def parse_ipv4(packet: bytes) -> Ipv4 | None:
    """A whole packet (options skipped, padding cut off); ``None`` also for fragments."""
    if len(packet) < IP_HLEN:
        return None
    version, _, length, _, fragment, _, protocol, _, source, destination = _IP.unpack_from(packet)
    header = (version & 0xF) * 4
    if version >> 4 != 4 or header < IP_HLEN or not header <= length <= len(packet):
        return None
    if checksum(packet[:header]) or fragment & 0x3FFF:
        return None
    return Ipv4(source, destination, protocol, packet[header:length])


def echo(kind: int, ident: int, sequence: int, payload: bytes) -> bytes:
    message = _ICMP.pack(kind, 0, 0, ident, sequence) + payload
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def parse_echo(message: bytes) -> Echo | None:
    """An echo request or reply with a correct checksum."""
    if len(message) < ICMP_HLEN or checksum(message):
        return None
    kind, code, _, ident, sequence = _ICMP.unpack_from(message)
    if kind not in (ICMP_ECHO, ICMP_ECHOREPLY) or code:
        return None
    return Echo(kind, ident, sequence, message[ICMP_HLEN:])
