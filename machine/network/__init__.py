# SPDX-License-Identifier: GPL-2.0-or-later
"""What is at the other end of a network card's cable: the real Linux stack, or a peer written here.

A wire carries Ethernet frames without preamble and frame check sequence.  :func:`open_wire` picks one.
"""

from machine.network.capture import CapturedFrame, CaptureError
from machine.network.choice import open_wire
from machine.network.pcap import PcapWriter, read_capture
from machine.network.recorded import RecordedWire
from machine.network.wire import Wire, WireError

__all__ = [
    "CaptureError",
    "CapturedFrame",
    "PcapWriter",
    "RecordedWire",
    "Wire",
    "WireError",
    "open_wire",
    "read_capture",
]
