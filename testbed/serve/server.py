# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor: one loop that answers the calls of a program and its children until the last of them has ended.

What happened before a call is seen before it: descriptors that were closed and processes that ended come first.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from abi.errno import EEXIST, ENODEV, ENOTDIR, ENOTTY
from guest_driver.iommufd.context import IommufdCtx
from guest_driver.iommufd.process import ReadableFile
from guest_driver.iommufd.vfio_device import VfioDevice
from guest_driver.linux.errno import ESPIPE
from testbed.serve.files import Accounts, Open, OpenFiles, ProgramFiles, ProgramProcess, process_status
from testbed.serve.memory import ProgramMemory, SharedPages
from testbed.serve.pidfd import take_fd
from testbed.serve.seccomp import Call, Listener

Opener = Callable[[], object]
"""Makes what an open of a path stands for; a negative int is -errno."""


class Server:
    """``paths``: which paths are served.  ``note`` is told a line for each ioctl, if wanted."""

    def __init__(
        self,
        listener: Listener,
        shared: SharedPages,
        paths: dict[str, Opener],
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._listener: Final = listener
        self._shared: Final = shared
        self._paths: Final = paths
        self._names: Final = {os.path.basename(path) for path in paths}
        self._note: Final = note
        self._opened: Final = OpenFiles()
        self._accounts: Final = Accounts()
        self._threads: Final[dict[int, ProgramProcess]] = {}
        self._ends: Final[dict[int, ProgramProcess]] = {}
        """Descriptor that becomes readable when the process ends, to the process."""
        self._poll: Final = select.epoll()
        self._poll.register(listener.fd, select.EPOLLIN)
        self.calls = 0
        """Ioctls on served files."""
        self._answers: Final[dict[str, Callable[[Call], None]]] = {
            "ioctl": self._ioctl,
            "open": lambda call: self._open(call, call.args[0], call.args[1], None),
            "openat": lambda call: self._open(call, call.args[1], call.args[2], call.args[0]),
            "openat2": self._openat2,
            "read": lambda call: self._transfer(call, None),
            "write": lambda call: self._transfer(call, None),
            "pread64": lambda call: self._transfer(call, call.args[3]),
            "pwrite64": lambda call: self._transfer(call, call.args[3]),
            "execve": self._memory_ends,
            "execveat": self._memory_ends,
            "exit_group": self._memory_ends,
        }

    # ------------------------------------------------------------------------------------------------- loop

    def run(self) -> None:
        """Serve until no process is under the filter any more."""
        listener = self._listener.fd
        while True:
            waiting = False
            for fd, events in self._poll.poll():
                if fd != listener:
                    self._ended(fd)
                elif events & select.EPOLLIN:
                    waiting = True
                elif events & select.EPOLLHUP:
                    self._finish()
                    return
            if waiting:
                call = self._listener.receive()
                if call is not None:
                    answer = self._answers.get(call.name)
                    if answer is None:
                        self._listener.let_pass(call)
                    else:
                        answer(call)

    def _ended(self, fd: int) -> None:
        """A file has lost its last descriptor, or a process has ended."""
        opened = self._opened.by_peer.get(fd)
        if opened is not None:
            self._poll.unregister(fd)
            self._opened.forget(opened)
            self._release(opened.file)
            return
        process = self._ends.pop(fd, None)
        if process is not None:
            self._poll.unregister(fd)
            os.close(fd)
            if not process.memory.gone:
                process.memory.end()
            for tid in [tid for tid, owner in self._threads.items() if owner is process]:
                del self._threads[tid]

    def _finish(self) -> None:
        for opened in list(self._opened.by_peer.values()):
            self._opened.forget(opened)
            self._release(opened.file)
        for fd in list(self._ends):
            self._ended(fd)
        self._poll.close()

    def _release(self, file: object) -> None:
        if isinstance(file, IommufdCtx):
            file.close()
        elif isinstance(file, VfioDevice | ReadableFile):
            file.release()
        self._signal()

    # ---------------------------------------------------------------------------------------------- processes

    def _process(self, call: Call) -> ProgramProcess | None:
        process = self._threads.get(call.pid)
        if process is None:
            status = process_status(call.pid)
            if status is None or not self._listener.alive(call):
                return None
            pid, uid, capabilities = status
            process = next((known for known in self._threads.values() if known.pid == pid), None)
            if process is None:
                table = ProgramFiles(self._opened, self._shared, self._listener)
                memory = ProgramMemory(pid, self._shared)
                process = ProgramProcess(pid, uid, capabilities, memory, table, self._accounts)
                end = os.pidfd_open(pid)
                self._ends[end] = process
                self._poll.register(end, select.EPOLLIN)
            self._threads[call.pid] = process
        process.table.call = call
        return process

    def _memory_ends(self, call: Call) -> None:
        """The process ends or replaces its memory: what devices need of it is kept first."""
        process = self._threads.get(call.pid)
        if process is not None and not process.memory.gone:
            process.memory.end()
            if call.name != "exit_group":
                process.mm = ProgramMemory(process.pid, self._shared)
        self._listener.let_pass(call)

    # -------------------------------------------------------------------------------------------------- calls

    def _openat2(self, call: Call) -> None:
        process = self._process(call)
        how = None if process is None else process.memory.read(call.args[2], 8)
        flags = struct.unpack("<Q", how)[0] if how is not None else 0
        self._open(call, call.args[1], flags, call.args[0])

    def _open(self, call: Call, path_at: int, flags: int, directory: int | None) -> None:
        process = self._process(call)
        path = None if process is None else process.memory.read_string(path_at)
        if path is None or os.path.basename(path) not in self._names:
            self._listener.let_pass(call)
            return
        if not path.startswith("/"):
            start = "cwd" if directory is None or directory & 0xFFFFFFFF == 0xFFFFFF9C else f"fd/{directory}"
            with suppress(OSError):
                path = os.path.join(os.readlink(f"/proc/{call.pid}/{start}"), path)
        opener = self._paths.get(os.path.normpath(path))
        if opener is None:
            self._listener.let_pass(call)
            return
        exclusive = os.O_CREAT | os.O_EXCL
        file: object
        if flags & os.O_DIRECTORY:
            file = -ENOTDIR
        else:
            file = -EEXIST if flags & exclusive == exclusive else opener()
        if isinstance(file, int):
            self._listener.answer(call, file)
            return
        opened, theirs = self._opened.create(file)
        at = None
        if isinstance(file, VfioDevice):  # its registers are read and written
            assert process is not None
            at = process.table.reserve()
        with theirs:
            if at is None or at >= 0:
                given = self._listener.answer_with_file(call, theirs.fileno(), bool(flags & os.O_CLOEXEC), at)
            else:
                given = False
                self._listener.answer(call, at)
        if given:
            self._watch(opened)
        else:
            self._opened.forget(opened)
            self._release(file)

    def _ioctl(self, call: Call) -> None:
        fd, request, address = call.args[:3]
        opened = self._opened.find(call.pid, fd & 0xFFFFFFFF)
        process = None if opened is None else self._process(call)
        if opened is None or process is None:
            self._listener.let_pass(call)
            return
        self.calls += 1
        file = opened.file
        if isinstance(file, IommufdCtx | VfioDevice):
            result = file.ioctl(process, request & 0xFFFFFFFF, address)
        else:
            result = -ENOTTY
        if self._note is not None:
            self._note(f"[{process.pid}] {type(file).__name__} ioctl {request & 0xFFFFFFFF:#x} = {result}")
        self._signal()
        self._listener.answer(call, result)
        for made in process.table.watch:
            self._watch(made)
        process.table.watch.clear()

    def _transfer(self, call: Call, offset: int | None) -> None:
        """read, write, pread or pwrite of a served file."""
        fd, address, count = call.args[:3]
        opened = self._opened.find(call.pid, fd & 0xFFFFFFFF)
        process = None if opened is None else self._process(call)
        if opened is None or process is None:
            self._listener.let_pass(call)
            return
        file, reads = opened.file, call.name in ("read", "pread64")
        if isinstance(file, VfioDevice):
            move = file.pread if reads else file.pwrite
            result = move(process, address, count, offset or 0)
        elif not isinstance(file, ReadableFile):
            result = -ENODEV
        elif offset is not None:
            result = -ESPIPE
        else:
            result = (file.read if reads else file.write)(process.mm, address, count)
        self._signal()
        if isinstance(file, ReadableFile) and opened.signalled and not file.readable():
            self._drain(call, opened)
        self._listener.answer(call, result)

    # ------------------------------------------------------------------------------------------------ readiness

    def _watch(self, opened: Open) -> None:
        """Hear of the file's last close."""
        self._poll.register(opened.peer.fileno(), select.EPOLLRDHUP)
        self._signal()

    def _signal(self) -> None:
        """Let poll find the queues that have something, by a byte in their sockets."""
        for opened in self._opened.queues:
            assert isinstance(opened.file, ReadableFile)
            if not opened.signalled and opened.file.readable():
                with suppress(OSError):
                    opened.peer.send(b"!", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    opened.signalled = True

    def _drain(self, call: Call, opened: Open) -> None:
        """Take the byte back, from the program's own end."""
        theirs = take_fd(call.pid, call.args[0] & 0xFFFFFFFF)
        if theirs is None:
            return
        with socket.socket(fileno=theirs) as end, suppress(OSError):
            end.recv(1, socket.MSG_DONTWAIT)
        opened.signalled = False
