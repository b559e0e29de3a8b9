# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's qtest protocol: one text line per register access, answered in order (QEMU: docs/devel/qtest.rst).

The connection is a pair of sockets made before QEMU starts, so there is nothing to wait for and no name in the file
system.  QEMU writes its answers without looking whether anybody reads them and stands still when the socket is full;
a batch is therefore sent in pieces of :data:`WINDOW` requests.
"""

import os
import socket
from collections.abc import Sequence
from typing import Final

from oracle.process import ModelDied, ModelProcess
from oracle.shared_ram import SharedRam

WINDOW: Final = 128
"""Most requests whose answers may be outstanding."""
PATIENCE: Final = 60.0
"""Seconds without an answer after which a model counts as hung."""

_WRITE: Final = {1: "writeb", 2: "writew", 4: "writel", 8: "writeq"}
_READ: Final = {1: "readb", 2: "readw", 4: "readl", 8: "readq"}


def read(address: int, size: int) -> str:
    """The request that reads ``size`` bytes (1, 2, 4, 8)."""
    return f"{_READ[size]} {address:#x}\n"


def write(address: int, size: int, value: int) -> str:
    """The request that writes ``size`` bytes (1, 2, 4, 8)."""
    return f"{_WRITE[size]} {address:#x} {value:#x}\n"


def image(content: bytes) -> int:
    """Descriptor of an unnamed file that holds ``content``, a firmware image; close it once QEMU runs."""
    fd = os.memfd_create("pviommu-firmware")
    os.write(fd, content)
    return fd


class Qtest:
    """QEMU with ``arguments``, its RAM shared as the memory backend ``ram``, and the connection to it."""

    def __init__(
        self,
        program: str,
        arguments: Sequence[str],
        ram: SharedRam,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.ram_start: Final = ram.start
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(PATIENCE)
        backend = f"memory-backend-file,id=ram,size={ram.size},mem-path=/proc/self/fd/{ram.fd},share=on"
        argv = [
            program,
            *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-serial", "none"),
            *("-object", backend),
            *("-chardev", f"socket,id=qtest,fd={theirs.fileno()}", "-qtest", "chardev:qtest", "-qtest-log", "none"),
            *arguments,
        ]
        try:
            self.process: Final = ModelProcess(argv, (theirs.fileno(), ram.fd), environment)
        finally:
            theirs.close()
        self._buffer = b""
        self._waiting: list[str] = []
        """Requests that were not sent yet."""
        self._posted = 0
        """Requests that were sent and whose answers nobody waited for."""

    def ask(self, requests: Sequence[str]) -> list[int]:
        """Send a batch; the value of each answer, 0 for an access that has none.

        :class:`ModelDied` when the process is gone or does not answer.
        """
        answers: list[int] = []
        for first in range(0, max(len(requests), 1), WINDOW):
            piece = requests[first : first + WINDOW]
            self._send(piece)
            posted, self._posted = self._posted - len(piece), 0
            try:
                if posted:
                    self._collect(posted, [])
                self._collect(len(piece), answers)
            except TimeoutError:
                raise ModelDied(f"{self.process.argv[0]} has not answered for {PATIENCE:.0f} seconds") from None
            except OSError:
                raise self.process.death() from None
        return answers

    def post(self, requests: Sequence[str]) -> None:
        """A few writes that need not happen now: they are sent before whatever comes next."""
        self._waiting += requests
        if len(self._waiting) + self._posted > WINDOW:
            self.ask(())

    def send(self, requests: Sequence[str]) -> None:
        """A few writes that are to happen now; nobody waits for their end."""
        if len(requests) + len(self._waiting) + self._posted > WINDOW:
            self.ask(requests)
        else:
            self._send(requests)

    def _send(self, requests: Sequence[str]) -> None:
        self._waiting += requests
        self._posted += len(self._waiting)
        data = "".join(self._waiting).encode()
        self._waiting.clear()
        try:
            self._socket.sendall(data)
        except OSError:
            raise self.process.death() from None

    def _collect(self, count: int, answers: list[int]) -> None:
        buffer = self._buffer
        while True:
            seen = buffer.count(b"\n")
            if seen >= count:
                break
            data = self._socket.recv(1 << 16)
            if not data:
                raise self.process.death()
            buffer += data
        lines = buffer.split(b"\n", count)
        self._buffer = lines.pop()
        for line in lines:
            if line == b"OK":
                answers.append(0)
            elif line.startswith(b"OK "):
                answers.append(int(line[3:], 16))
            else:
                raise ModelDied(f"{self.process.argv[0]} answered {line.decode(errors='replace')!r}")

    def read(self, address: int, size: int) -> int:
        return self.ask((read(address, size),))[0]

    def write(self, address: int, size: int, value: int) -> None:
        self.ask((write(address, size, value),))

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self.process.stop()
