# SPDX-License-Identifier: GPL-2.0-or-later
"""Echo requests as fast as the card takes them (ping -f): bursts with one doorbell, every byte of every reply compared.

A frame is linear, one page and one mapping; up to a ring's worth of them is under way at a time.
"""

from collections import deque
from ipaddress import IPv4Address
from typing import Final

from abi.errno import EBUSY
from guest_driver.net.stack import NetStack, pattern


class EchoFlood:
    """Requests of ``payload_bytes`` to ``destination``, whose MAC is known.

    ``sent`` and ``returned`` count packets, ``compared`` bytes; a reply that is not what was sent goes into ``errors``,
    one line each.
    """

    def __init__(self, stack: NetStack, destination: str, payload_bytes: int, ident: int) -> None:
        self._stack: Final = stack
        self._target: Final = IPv4Address(destination).packed
        self._payload_bytes: Final = payload_bytes
        self._ident: Final = ident
        self._waiting: Final[deque[tuple[int, bytes]]] = deque()
        self.sent = 0
        self.returned = 0
        self.compared = 0
        self.errors: Final[list[str]] = []

    @property
    def outstanding(self) -> int:
        """Requests whose reply has not come."""
        return len(self._waiting)

    def burst(self, count: int) -> int:
        """Queue up to ``count`` requests, then ring the doorbell once; 0, or the -errno that stopped it.

        -EBUSY: the ring was full before the first of them; what could be queued before it is full is no error.
        """
        stack = self._stack
        ret = queued = 0
        for _ in range(count):
            sequence = self.sent & 0xFFFF
            payload = pattern(self._payload_bytes, self._ident, sequence)
            ret = stack.request(self._target, payload, self._ident, sequence, more=True)
            if ret:
                break
            self._waiting.append((sequence, payload))
            self.sent += 1
            queued += 1
        if queued:
            stack.nic.kick()
        return 0 if ret == -EBUSY and queued else ret

    def collect(self) -> int:
        """Compare the replies that have come, in the order of their requests; how many are still to come."""
        replies, target, ident = self._stack.replies, self._target, self._ident
        waiting = self._waiting
        while waiting and (target, ident, waiting[0][0]) in replies:
            sequence, payload = waiting.popleft()
            reply = replies.pop((target, ident, sequence))
            if reply == payload:
                self.returned += 1
                self.compared += len(payload)
            else:
                self.errors.append(f"the reply to echo request {sequence} is not what was sent")
        return len(waiting)
