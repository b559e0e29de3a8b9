# SPDX-License-Identifier: GPL-2.0-or-later
"""Wires that end in this process, for hosts that permit nothing else.

:class:`PeerWire` ends in a small responder: it owns 10.9.0.1, answers ARP for it and ICMP echo requests to it, and
ignores the rest, as a host without services would.  :class:`LoopWire` gives every frame back.
"""

from collections import deque
from typing import Final

from machine.network.packets import (
    ARP_REPLY,
    ARP_REQUEST,
    BROADCAST,
    ICMP_ECHO_REPLY,
    ICMP_ECHO_REQUEST,
    arp,
    echo,
    ip,
    parse_arp,
    parse_echo,
)
from machine.network.wire import MAX_FRAME, MIN_FRAME, PEER_IP, PEER_MAC

QUEUE_LIMIT: Final = 4096
"""Frames that may wait to be received; more are lost."""


class _Queue:
    """Frames that wait for the station."""

    def __init__(self) -> None:
        self.lost = 0
        self._waiting: deque[bytes] = deque()
        self._open = True

    def send(self, frame: bytes) -> None:
        if not self._open or not MIN_FRAME <= len(frame) <= MAX_FRAME:
            self.lost += 1
            return
        answer = self._answer(frame)
        if answer is None:
            return
        if len(self._waiting) >= QUEUE_LIMIT:
            self.lost += 1
        else:
            self._waiting.append(answer)

    def _answer(self, frame: bytes) -> bytes | None:
        raise NotImplementedError

    def receive(self) -> bytes | None:
        return self._waiting.popleft() if self._waiting else None

    def wait(self, timeout: float) -> bool:
        """Answers are there at once or never: ``timeout`` is not needed."""
        return bool(self._waiting)

    def close(self) -> None:
        self._open = False
        self._waiting.clear()


class PeerWire(_Queue):
    """A cable to a responder at ``ip_address``/``mac``; ``why`` says what was preferred and could not be had."""

    def __init__(self, why: str = "", ip_address: str = PEER_IP, mac: bytes = PEER_MAC) -> None:
        super().__init__()
        self.ip: Final = ip(ip_address)
        self.mac: Final = mac
        self.answered = 0
        self.ignored = 0
        self._ip_text = ip_address
        self._why = why

    @property
    def description(self) -> str:
        return f"in-process peer at {self._ip_text}" + (f" ({self._why})" if self._why else "")

    def _answer(self, frame: bytes) -> bytes | None:
        answer = self._respond(frame) if frame[:6] in (self.mac, BROADCAST) else None
        if answer is None:
            self.ignored += 1
        else:
            self.answered += 1
        return answer

    def _respond(self, frame: bytes) -> bytes | None:
        question = parse_arp(frame)
        if question is not None:
            if question.operation != ARP_REQUEST or question.target_ip != self.ip:
                return None
            return arp(ARP_REPLY, self.mac, self.ip, question.sender_mac, question.sender_ip)
        ping = parse_echo(frame)
        if ping is None or ping.kind != ICMP_ECHO_REQUEST or ping.target_ip != self.ip:
            return None
        return echo(
            ICMP_ECHO_REPLY,
            (self.mac, ping.source_mac),
            (self.ip, ping.source_ip),
            ping.identifier,
            ping.sequence,
            ping.payload,
        )


class LoopWire(_Queue):
    """A cable whose far end is plugged into its near end."""

    def __init__(self, why: str = "") -> None:
        super().__init__()
        self._why = why

    @property
    def description(self) -> str:
        return "in-process loop, frames come back as sent" + (f" ({self._why})" if self._why else "")

    def _answer(self, frame: bytes) -> bytes | None:
        return frame
