# SPDX-License-Identifier: GPL-2.0-or-later
"""A tap on the cable: what crosses a wire, in both directions, goes into a capture file as well."""

from typing import Final

from machine.network.pcap import PcapWriter
from machine.network.wire import Wire


class RecordedWire:
    """``wire`` as before; every frame is written to ``writer``, which closes with the wire."""

    def __init__(self, wire: Wire, writer: PcapWriter) -> None:
        self._wire: Final = wire
        self._writer: Final = writer

    @property
    def lost(self) -> int:
        return self._wire.lost

    @property
    def description(self) -> str:
        return self._wire.description

    def send(self, frame: bytes) -> None:
        self._writer.write(frame)
        self._wire.send(frame)

    def receive(self) -> bytes | None:
        frame = self._wire.receive()
        if frame is not None:
            self._writer.write(frame)
        return frame

    def wait(self, timeout: float) -> bool:
        return self._wire.wait(timeout)

    def close(self) -> None:
        self._wire.close()
        self._writer.close()
