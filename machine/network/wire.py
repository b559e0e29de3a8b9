# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract of a cable, and the addresses at both of its ends.

The station is what sits on our side (the guest behind the network card), the peer is what answers.
"""

from typing import Final, Protocol

MTU: Final = 9000
"""Largest IP packet, bytes."""
MIN_FRAME: Final = 14
"""An Ethernet header; anything shorter is not a frame."""
MAX_FRAME: Final = MTU + 14 + 4
"""Header and one VLAN tag around a full packet."""

PEER_IP: Final = "10.9.0.1"
PEER_MAC: Final = bytes.fromhex("02509e000001")
STATION_IP: Final = "10.9.0.2"
STATION_MAC: Final = bytes.fromhex("02509e000002")
PREFIX_LENGTH: Final = 24


class WireError(Exception):
    """A wire that cannot be had or has broken; one line for people, with what to do about it."""


class Wire(Protocol):
    """Both directions of a cable.  Frames are whole Ethernet frames; a cable counts those that it loses."""

    @property
    def lost(self) -> int:
        """Frames that were handed in, or arrived, and went nowhere."""
        ...

    @property
    def description(self) -> str:
        """One line: what this is and what is at the other end."""
        ...

    def send(self, frame: bytes) -> None:
        """Put ``frame`` on the cable; one that is too short or too long for it is lost."""
        ...

    def receive(self) -> bytes | None:
        """The next frame that has arrived, ``None`` if there is none now."""
        ...

    def wait(self, timeout: float) -> bool:
        """Until a frame is there to receive or ``timeout`` seconds are over; whether one is there."""
        ...

    def close(self) -> None:
        """Unplug.  Closing twice is allowed."""
        ...
