# SPDX-License-Identifier: GPL-2.0-or-later
"""One end of a kernel network device as raw frames: an AF_PACKET socket, or the file of a TAP device (packet(7)).

The kernel takes the outer VLAN tag out of a received frame and reports it beside the data (struct tpacket_auxdata);
here it is put back, so that a frame reads as it was on the cable.
"""

import errno
import os
import select
import socket
from struct import Struct
from typing import Final, Protocol

from machine.network.wire import WireError

SOL_PACKET: Final = 263
PACKET_STATISTICS: Final = 6
PACKET_AUXDATA: Final = 8
PACKET_IGNORE_OUTGOING: Final = 23
ETH_P_ALL: Final = 3
TP_STATUS_VLAN_VALID: Final = 1 << 4
TP_STATUS_VLAN_TPID_VALID: Final = 1 << 6
_ETHERTYPE_VLAN: Final = 0x8100

_AUXDATA: Final = Struct("=IIIHHHH")
_VLAN_TAG: Final = Struct(">HH")
_STATISTICS: Final = Struct("=II")
_BUFFER: Final = 9216
_CONTROL: Final = socket.CMSG_SPACE(_AUXDATA.size)
_PATIENCE_MS: Final = 100
"""How long a full transmit buffer may take to drain before a frame is given up."""

_NOT_A_FRAME: Final = frozenset({errno.EMSGSIZE, errno.EINVAL})
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS})


class FrameEnd(Protocol):
    """A non-blocking source and sink of frames."""

    def fileno(self) -> int: ...

    def send(self, frame: bytes) -> bool:
        """Whether the kernel took the frame."""
        ...

    def receive(self) -> bytes | None: ...

    def dropped(self) -> int:
        """Frames that the kernel dropped on the way here since the last call."""
        ...

    def close(self) -> None: ...


class PacketSocket:
    """An AF_PACKET socket that is bound to a device; takes over ``handle``."""

    def __init__(self, handle: socket.socket) -> None:
        handle.setblocking(False)
        self._socket: Final = handle

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frame: bytes) -> bool:
        for _ in range(2):
            try:
                self._socket.send(frame)
                return True
            except OSError as error:
                if error.errno in _NOT_A_FRAME:
                    return False
                if error.errno not in _FULL:
                    raise WireError(f"the network namespace's device is gone: {error.strerror}") from error
                _await(self.fileno(), select.POLLOUT, _PATIENCE_MS)
        return False

    def receive(self) -> bytes | None:
        try:
            data, extra, _, _ = self._socket.recvmsg(_BUFFER, _CONTROL)
        except BlockingIOError:
            return None
        except OSError as error:
            raise WireError(f"the network namespace's device is gone: {error.strerror}") from error
        for level, kind, value in extra:
            if level == SOL_PACKET and kind == PACKET_AUXDATA:
                status, _, _, _, _, tci, tpid = _AUXDATA.unpack_from(value)
                if status & TP_STATUS_VLAN_VALID:
                    if not status & TP_STATUS_VLAN_TPID_VALID:
                        tpid = _ETHERTYPE_VLAN
                    return data[:12] + _VLAN_TAG.pack(tpid, tci) + data[12:]
        return data

    def dropped(self) -> int:
        raw = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, _STATISTICS.size)
        drops: int = _STATISTICS.unpack(raw)[1]
        return drops

    def close(self) -> None:
        self._socket.close()


class TapFile:
    """The file of a TAP device without packet information; takes over ``descriptor``."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._file: Final = os.fdopen(descriptor, "r+b", buffering=0)

    def fileno(self) -> int:
        return self._file.fileno()

    def send(self, frame: bytes) -> bool:
        try:
            return os.write(self._file.fileno(), frame) == len(frame)
        except OSError as error:
            if error.errno in _NOT_A_FRAME or error.errno in _FULL:
                return False
            raise WireError(f"the network namespace's device is gone: {error.strerror}") from error

    def receive(self) -> bytes | None:
        try:
            return os.read(self._file.fileno(), _BUFFER)
        except BlockingIOError:
            return None
        except OSError as error:
            raise WireError(f"the network namespace's device is gone: {error.strerror}") from error

    def dropped(self) -> int:
        """A TAP device keeps its count to itself."""
        return 0

    def close(self) -> None:
        self._file.close()


def _await(descriptor: int, event: int, milliseconds: int) -> None:
    poller = select.poll()
    poller.register(descriptor, event)
    poller.poll(milliseconds)
