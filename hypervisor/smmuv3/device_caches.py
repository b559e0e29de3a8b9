# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that keep translations themselves (ATS; IHI 0070, 3.9): which do, and how they are made to forget.

A device is asked after the unit's own TLB has forgotten: one that asked again before would get the old answer.  One
that does not answer can go on using what it kept, so its stream is made to abort for good; the unit checks translated
requests against the stream table (CR0.ATSCHK), and then nothing is left to the device.
"""

from collections.abc import Sequence
from typing import Final

from abi.errno import ETIMEDOUT
from hypervisor.smmuv3 import layouts as hw
from hypervisor.smmuv3.unit import SmmuUnit

Stream = tuple[int, int]
"""(unit, stream id)"""

WHOLE: Final = hw.AtcInvAddress.pack(size=52)
"""Everything that a device keeps."""


def pages_of_device(dfn: int, pages: int) -> int:
    """Second word of the CMD_ATC_INV for ``pages`` pages from ``dfn``: the least aligned power of two around them."""
    order = (dfn ^ dfn + pages - 1).bit_length()
    return dfn >> order << order + 12 | hw.AtcInvAddress.size.put(order)


class DeviceCaches:
    """The streams of all ``units`` that may keep translations."""

    def __init__(self, units: Sequence[SmmuUnit]) -> None:
        self._units: Final = units
        self._capable: set[Stream] = set()
        """Streams of devices with ATS behind units with ATS: a property of the machine, no part of a snapshot."""
        self.caching: frozenset[Stream] = frozenset()
        """Streams whose entries let them keep translations, or did when they were last asked to forget."""
        self.broken: frozenset[Stream] = frozenset()
        """Streams that did not answer once."""

    def add(self, streams: Sequence[Stream]) -> None:
        """A device with ATS has these streams."""
        self._capable.update(stream for stream in streams if self._units[stream[0]].ats)

    def capable(self, stream: Stream) -> bool:
        return stream in self._capable

    def start(self, stream: Stream) -> None:
        """The entry of ``stream`` lets it keep translations now."""
        self.caching |= {stream}

    def stop(self, stream: Stream) -> int:
        """The entry of ``stream`` aborts, as the unit knows: it is to forget everything.  0, or -EIO.

        A device that does not answer is :attr:`broken`, and that is all: it has nothing left.
        """
        if stream in self.caching and stream not in self.broken:
            error = self.forget(stream, WHOLE)
            if error and error != -ETIMEDOUT:
                return error
        self.caching -= {stream}
        return 0

    def forget(self, stream: Stream, what: int) -> int:
        """Ask for ``what`` (a command's second word): 0, -ETIMEDOUT from a device that is now :attr:`broken`, -EIO."""
        index, sid = stream
        error = self._units[index].commands.run_one(hw.Command.pack(op=hw.CMD_ATC_INV, sid=sid), what)
        if error == -ETIMEDOUT:
            self.broken |= {stream}
        return error

    def save(self) -> object:
        return (self.caching, self.broken)

    def restore(self, state: object) -> None:
        self.caching, self.broken = state  # type: ignore[misc]
