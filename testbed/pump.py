# SPDX-License-Identifier: GPL-2.0-or-later
"""The other side's turn: frames from the wire into the network card, waiting for them when there are none."""

import time
from typing import Final

from machine.devices.nic import Nic
from machine.network.wire import Wire

REPLY_TIMEOUT: Final = 2.0
"""Seconds to wait for one reply of a live network stack."""


class NoReply(Exception):
    """No frame came in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no reply within {seconds:g} s")


class Pump:
    """Moves frames from ``wire`` into ``card``."""

    def __init__(self, card: Nic, wire: Wire) -> None:
        self._card: Final = card
        self._wire: Final = wire
        self._deadline = 0.0
        self._seconds = 0.0

    def restart(self) -> None:
        """A new exchange begins: it has :data:`REPLY_TIMEOUT` seconds."""
        self._seconds = REPLY_TIMEOUT
        self._deadline = time.monotonic() + self._seconds

    def __call__(self) -> None:
        """Move what is there; :class:`NoReply` if nothing is and nothing comes while there is time."""
        if self._card.poll():
            return
        left = self._deadline - time.monotonic()
        if left <= 0 or (not self._wire.wait(left) and time.monotonic() >= self._deadline):
            raise NoReply(self._seconds)
        self._card.poll()
