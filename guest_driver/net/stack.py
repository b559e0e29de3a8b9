# SPDX-License-Identifier: GPL-2.0-or-later
"""IPv4 over one interface: resolves neighbours, answers pings, and pings.

Every frame is built into scattered guest pages and every reply is compared byte by byte, so that a page mapped to
the wrong frame, or unmapped too early, shows up as a difference at an offset.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Final

from abi.errno import EMSGSIZE, ENOMEM, errno_name
from guest_driver.net import wire
from guest_driver.net.skb import FRAGMENT_BYTES, build_skb
from guest_driver.nic import Nic

_HEADERS: Final = wire.ETH_HLEN + wire.IP_HLEN + wire.ICMP_HLEN


@dataclass(frozen=True, slots=True)
class PingResult:
    """``error`` is empty for a reply that came back as it was sent."""

    error: str
    polls: int
    """How often the interface was polled, ARP included."""
    payload_bytes: int = 0
    first_difference: int | None = None
    """Offset in the payload of the first byte that is not what was sent."""

    @property
    def ok(self) -> bool:
        return not self.error


def pattern(size: int, ident: int, sequence: int) -> bytes:
    """A payload in which every byte depends on its position and on the ping it belongs to.

    Byte ``p`` is ``seed + 7 p + 13 (p >> 8)`` modulo 256: 256 bytes at a time, a ramp that starts somewhere else.
    """
    seed = ident * 251 + sequence * 31
    starts = [(seed + 13 * block) * _INVERSE_OF_7 & 0xFF for block in range(size + 255 >> 8)]
    return b"".join(_RAMP[start : start + 256] for start in starts)[:size]


_RAMP: Final = bytes(7 * position & 0xFF for position in range(512))
_INVERSE_OF_7: Final = 183
"""7 * 183 is 1 modulo 256: a ramp that begins with ``x`` is :data:`_RAMP` from ``183 x`` on."""


class NetStack:
    """The host part: one address, a neighbour table, the echo replies that have come in."""

    def __init__(
        self,
        nic: Nic,
        address: str,
        mtu: int = 1500,
        fragment_bytes: int = FRAGMENT_BYTES,
        head_bytes: int = _HEADERS,
    ) -> None:
        self.nic: Final = nic
        self.address: Final = IPv4Address(address).packed
        self.mtu: Final = mtu
        self.fragment_bytes: Final = fragment_bytes
        """Longest piece of a frame in one guest page."""
        self.head_bytes: Final = head_bytes
        """Bytes of a frame that its first page holds: the headers, or all of it where frames are to be linear."""
        self.neighbours: dict[bytes, bytes] = {}
        self.replies: dict[tuple[bytes, int, int], bytes] = {}
        """Payload by (source, ident, sequence) of echo replies nobody has asked for yet."""
        self.send_errors = 0
        nic.rx_handler = self.receive
        nic.kernel.drivers.append(self)

    def close(self) -> None:
        """Detach from the interface."""
        self.nic.rx_handler = None
        self.nic.kernel.drivers.remove(self)

    # -- receive

    def receive(self, frame: bytes) -> None:
        """A frame from the interface; whatever is not for us or not understood is dropped."""
        ether = wire.parse_ethernet(frame)
        if ether is None or ether.destination not in (self.nic.mac, wire.ETH_BROADCAST):
            return
        if ether.ethertype == wire.ETH_P_ARP:
            self._receive_arp(ether.payload)
        elif ether.ethertype == wire.ETH_P_IP:
            self._receive_ip(ether)

    def _receive_arp(self, packet: bytes) -> None:
        arp = wire.parse_arp(packet)
        if arp is None:
            return
        if arp.target_ip == self.address or arp.sender_ip in self.neighbours:
            self.neighbours[arp.sender_ip] = arp.sender_mac
        if arp.operation == wire.ARP_REQUEST and arp.target_ip == self.address:
            reply = wire.arp(wire.ARP_REPLY, self.nic.mac, self.address, arp.sender_mac, arp.sender_ip)
            self._send(arp.sender_mac, wire.ETH_P_ARP, reply)

    def _receive_ip(self, ether: wire.Ethernet) -> None:
        packet = wire.parse_ipv4(ether.payload)
        if packet is None or packet.destination != self.address or packet.protocol != wire.IPPROTO_ICMP:
            return
        echo = wire.parse_echo(packet.payload)
        if echo is None:
            return
        if echo.kind == wire.ICMP_ECHOREPLY:
            self.replies[packet.source, echo.ident, echo.sequence] = echo.payload
            return
        answer = wire.echo(wire.ICMP_ECHOREPLY, echo.ident, echo.sequence, echo.payload)
        ip = wire.ipv4(self.address, packet.source, wire.IPPROTO_ICMP, answer)
        self._send(ether.source, wire.ETH_P_IP, ip)

    # -- send

    def _send(self, destination: bytes, ethertype: int, payload: bytes, more: bool = False) -> int:
        """Build a frame in guest pages and queue it (``more``: without the doorbell); 0 or -errno."""
        frame = wire.ethernet(destination, self.nic.mac, ethertype, payload).ljust(wire.ETH_ZLEN, b"\0")
        skb = build_skb(self.nic.kernel, frame, self.head_bytes, self.fragment_bytes)
        ret = -ENOMEM if skb is None else self.nic.ndo_start_xmit(skb, more)
        if ret:
            self.send_errors += 1
            if skb is not None:
                skb.free()
        return ret

    def _wait(self, done: Callable[[], bool], polls: int, relax: Callable[[], object] | None) -> int:
        """Poll the interface until ``done``; the number of polls it took, or -1 after ``polls``."""
        for count in range(1, polls + 1):
            self.nic.poll()
            if done():
                return count
            if relax is not None:
                relax()
        return -1

    def resolve(self, ip: bytes, polls: int = 1000, relax: Callable[[], object] | None = None) -> tuple[int, str]:
        """Find a neighbour's MAC by ARP: (polls, error)."""
        if ip in self.neighbours:
            return 0, ""
        request = wire.arp(wire.ARP_REQUEST, self.nic.mac, self.address, bytes(6), ip)
        ret = self._send(wire.ETH_BROADCAST, wire.ETH_P_ARP, request)
        if ret:
            return 0, f"ARP request not sent ({errno_name(ret)})"
        waited = self._wait(lambda: ip in self.neighbours, polls, relax)
        return (polls, "no answer to ARP") if waited < 0 else (waited, "")

    def ping(
        self,
        dst_ip: str,
        payload_size: int = 56,
        ident: int = 1,
        seq: int = 1,
        *,
        polls: int = 1000,
        relax: Callable[[], object] | None = None,
    ) -> PingResult:
        """Send an ICMP echo request of ``payload_size`` bytes and compare every byte of the reply.

        ``polls``: how often to look for an answer; ``relax`` is called between looks to let the other side run.
        """
        target = IPv4Address(dst_ip).packed
        if payload_size < 0 or payload_size + wire.IP_HLEN + wire.ICMP_HLEN > self.mtu:
            return PingResult(errno_name(EMSGSIZE), 0)
        spent, error = self.resolve(target, polls, relax)
        if error:
            return PingResult(error, spent)
        payload = pattern(payload_size, ident, seq)
        key = (target, ident, seq)
        self.replies.pop(key, None)
        ret = self.request(target, payload, ident, seq)
        if ret:
            return PingResult(f"request not sent ({errno_name(ret)})", spent)
        waited = self._wait(lambda: key in self.replies, polls, relax)
        if waited < 0:
            return PingResult("no reply", spent + polls)
        return self._compare(payload, self.replies.pop(key), spent + waited)

    def request(self, target: bytes, payload: bytes, ident: int, seq: int, more: bool = False) -> int:
        """Queue an echo request to a neighbour that is :meth:`resolve`d; 0 or -errno."""
        message = wire.echo(wire.ICMP_ECHO, ident, seq, payload)
        packet = wire.ipv4(self.address, target, wire.IPPROTO_ICMP, message, seq)
        return self._send(self.neighbours[target], wire.ETH_P_IP, packet, more)

    @staticmethod
    def _compare(sent: bytes, received: bytes, polls: int) -> PingResult:
        if sent == received:
            return PingResult("", polls, len(received))
        first = next((at for at, (a, b) in enumerate(zip(sent, received)) if a != b), min(len(sent), len(received)))
        return PingResult(f"reply differs at byte {first}", polls, len(received), first)

    def save(self) -> Any:
        return dict(self.neighbours), dict(self.replies), self.send_errors

    def restore(self, state: Any) -> None:
        self.neighbours, self.replies, self.send_errors = dict(state[0]), dict(state[1]), state[2]
