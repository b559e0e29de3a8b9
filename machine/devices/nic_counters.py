# SPDX-License-Identifier: GPL-2.0-or-later
"""What a network card has counted, by the names that its reports use."""

from dataclasses import astuple, dataclass


@dataclass(slots=True)
class NicCounters:
    """Since power-on; RESET does not clear them."""

    tx_frames: int = 0
    tx_bytes: int = 0
    tx_errors: int = 0
    """Frames not sent because a fragment faulted or the frame was too long."""
    tx_runts: int = 0
    """Frames not sent because they have no whole Ethernet header."""
    tx_no_link: int = 0
    """Frames not sent because there is no wire."""
    rx_frames: int = 0
    rx_bytes: int = 0
    rx_dropped: int = 0
    """Frames from the wire for which there was no room, or that came while the card was off."""
    rx_errors: int = 0
    """Frames of which a part could not be stored."""

    def save(self) -> tuple[int, ...]:
        return astuple(self)

    def restore(self, state: tuple[int, ...]) -> None:
        for name, value in zip(self.__slots__, state):
            setattr(self, name, value)
