# SPDX-License-Identifier: GPL-2.0-or-later
"""A wire into the real Linux network stack, in a network namespace of its own.

The station's end is a raw socket on one end of a veth pair (or a TAP device's file).  At the other end the host's
kernel owns 10.9.0.1/24 with MTU 9000 and answers as it would any machine: ARP, ICMP, TCP resets and all.  For
``echo`` the far end has no address; a second raw socket sits on it and every frame that arrives there is sent back
from there, so what is compared afterwards has crossed the kernel's devices in both directions.

This process stays where it is: a child makes the namespace, hands the descriptors over and exits
(:mod:`machine.network.enter_namespace`).
"""

import functools
import os
import platform
import select
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from machine.network.packet_socket import FrameEnd, PacketSocket, TapFile
from machine.network.wire import MAX_FRAME, MIN_FRAME, PEER_IP, WireError

LINKS: Final = ("veth", "tap")
SETUP_SECONDS: Final = 30
BACKLOG_LIMIT: Final = 4096
"""Frames kept here when the station sends without receiving; more are lost."""
_DRAIN_EVERY: Final = 8
"""Frames sent after which the socket is emptied: its buffer may hold as few as two dozen large frames."""


class NamespaceWire:
    """A cable to ``near``; with ``far``, whatever arrives there is sent back."""

    def __init__(self, near: FrameEnd, far: FrameEnd | None, description: str) -> None:
        self.description: Final = description
        self._near: Final = near
        self._far: Final = far
        self._ends: Final[tuple[FrameEnd, ...]] = (near,) if far is None else (near, far)
        self._backlog: deque[bytes] = deque()
        self._sent = 0
        self._lost = 0
        self._open = True

    @property
    def lost(self) -> int:
        """Frames refused by the kernel, dropped by it for want of buffer, or beyond the backlog."""
        if self._open:
            self._lost += sum(end.dropped() for end in self._ends)
        return self._lost

    def send(self, frame: bytes) -> None:
        if not (self._open and MIN_FRAME <= len(frame) <= MAX_FRAME and self._near.send(frame)):
            self._lost += 1
            return
        self._sent += 1
        if self._sent % _DRAIN_EVERY == 0:
            self._drain()

    def receive(self) -> bytes | None:
        if self._backlog:
            return self._backlog.popleft()
        if not self._open:
            return None
        if self._far is not None:
            self._turn_around(self._far)
        return self._near.receive()

    def wait(self, timeout: float) -> bool:
        if self._backlog:
            return True
        if not self._open:
            return False
        poller = select.poll()
        for end in self._ends:
            poller.register(end.fileno(), select.POLLIN)
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            ready = [descriptor for descriptor, _ in poller.poll(max(0, round(left * 1000)))]
            if self._near.fileno() in ready:
                return True
            if self._far is not None and ready:
                self._turn_around(self._far)
            elif left <= 0:
                return False

    def close(self) -> None:
        if self._open:
            self._lost = self.lost
            self._open = False
            self._backlog.clear()
            for end in self._ends:
                end.close()

    def _drain(self) -> None:
        if self._far is not None:
            self._turn_around(self._far)
        while (frame := self._near.receive()) is not None:
            if len(self._backlog) < BACKLOG_LIMIT:
                self._backlog.append(frame)
            else:
                self._lost += 1

    def _turn_around(self, far: FrameEnd) -> None:
        while (frame := far.receive()) is not None:
            if not far.send(frame):
                self._lost += 1


def open_namespace(link: str = "veth", echo: bool = False) -> NamespaceWire:
    """Make a namespace and plug in; :class:`WireError` names the step that this host refuses."""
    if link not in LINKS:
        raise WireError(f"there is no link {link!r}; choose one of {', '.join(LINKS)}")
    if sys.platform != "linux":
        raise WireError(f"network namespaces are Linux's; this is {platform.system()}")
    descriptors = _spawn(link, echo)
    near: FrameEnd
    if link == "veth":
        near = PacketSocket(socket.socket(fileno=descriptors[0]))
    else:
        near = TapFile(descriptors[0])
    far = PacketSocket(socket.socket(fileno=descriptors[1])) if echo else None
    what = "frames come back from its far end" if echo else f"the kernel at {PEER_IP}"
    return NamespaceWire(near, far, f"Linux {platform.release()} in a network namespace over {link}, {what}")


@functools.cache
def why_not() -> str | None:
    """One line saying why no namespace can be had here, ``None`` if one can.  Asked once per process."""
    reason = None
    for link in LINKS:
        try:
            open_namespace(link).close()
            return None
        except WireError as error:
            reason = reason or str(error)
    return reason


def _spawn(link: str, echo: bool) -> list[int]:
    """Run the child that makes the namespace; the descriptors that it hands over."""
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise WireError(f"no network namespace: no socket pair: {error.strerror}") from None
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "machine.network.enter_namespace", str(theirs.fileno()), link]
    with ours, theirs:
        try:
            child = subprocess.run(
                [*command, "echo" if echo else "peer"],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SETUP_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise WireError(f"no network namespace after {SETUP_SECONDS} s; the child hangs") from None
        except OSError as error:
            raise WireError(f"no network namespace: the child could not be started: {error}") from None
        theirs.close()
        message, descriptors, _, _ = socket.recv_fds(ours, 4096, 2)
    if not message:
        words = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {child.returncode}"]
        raise WireError(f"no network namespace: the child failed with: {words[-1]}")
    answer = msgspec.json.decode(message, type=dict[str, str])
    if "error" in answer:
        raise WireError(f"no network namespace: {answer['error']}")
    return list(descriptors)
