# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program's descriptors stand for, and the processes that hold them.

A served file is one end of a socket pair; the other end is ours.  The program's end is known by its inode, however
often it was duplicated or inherited, and when the last descriptor is closed our end hangs up.
"""

from __future__ import annotations

import mmap
import os
import resource
import socket
import stat
from contextlib import suppress
from typing import Final

from abi.errno import EFAULT, EINVAL, EMFILE, ENOMEM
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.iommufd.process import UNLIMITED, Process, ReadableFile
from testbed.serve.memory import ProgramMemory, SharedPages
from testbed.serve.pidfd import take_fd
from testbed.serve.seccomp import FILES, FIRST_FILE, Call, Listener

_CAP_IPC_LOCK: Final = 14
_CAP_SYS_RESOURCE: Final = 24


class Open:
    """One served file: what it is, and our end of its socket pair."""

    __slots__ = ("file", "link", "peer", "signalled")

    def __init__(self, file: object, peer: socket.socket, link: str) -> None:
        self.file: Final = file
        self.peer: Final = peer
        self.link: Final = link
        """What /proc/pid/fd shows for the program's end."""
        self.signalled = False
        """A byte lies in the socket, so that poll finds something to read."""


class OpenFiles:
    """Every served file that is open anywhere."""

    def __init__(self) -> None:
        self.by_link: Final[dict[str, Open]] = {}
        self.by_peer: Final[dict[int, Open]] = {}
        self.queues: Final[list[Open]] = []
        """Those that a program may poll."""

    def create(self, file: object) -> tuple[Open, socket.socket]:
        """A new socket pair for ``file``; the program's end is the caller's to give away and close."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if not isinstance(file, ReadableFile):
            ours.shutdown(socket.SHUT_WR)  # a read that does not reach us finds the end of the file, and does not wait
        made = Open(file, ours, f"socket:[{os.fstat(theirs.fileno()).st_ino}]")
        self.by_link[made.link] = self.by_peer[ours.fileno()] = made
        if isinstance(file, ReadableFile):
            self.queues.append(made)
        return made, theirs

    def find(self, pid: int, fd: int) -> Open | None:
        """What ``fd`` of thread ``pid`` is, ``None`` if it is not ours."""
        try:
            return self.by_link.get(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            return None

    def forget(self, opened: Open) -> None:
        del self.by_link[opened.link], self.by_peer[opened.peer.fileno()]
        if opened in self.queues:
            self.queues.remove(opened)
        opened.peer.close()


class FileOfPages:
    """A file in memory (memfd, tmpfs) of the program, whose pages devices can reach."""

    is_memory = True

    def __init__(self, fd: int, shared: SharedPages) -> None:
        self._fd: Final = fd
        self._shared: Final = shared
        self._map: mmap.mmap | None = None

    def pin_pages(self, address: int, count: int, writable: bool) -> list[int] | int:
        end = address + (count << PAGE_SHIFT)
        status = os.fstat(self._fd)
        if end > status.st_size + PAGE_SIZE - 1 & -PAGE_SIZE:
            return -EINVAL
        if self._map is None or len(self._map) < end:
            try:
                self._map = mmap.mmap(self._fd, end)
            except (OSError, ValueError):
                return -EFAULT
        device = (os.major(status.st_dev), os.minor(status.st_dev))
        out: list[int] = []
        for offset in range(address, end, PAGE_SIZE):
            page = self._shared.get(("file", device, status.st_ino, offset >> PAGE_SHIFT))
            if page is None:
                for paddr in out:
                    self.unpin(paddr)
                return -ENOMEM
            page.window = memoryview(self._map)[offset : offset + PAGE_SIZE]
            out.append(page.pfn << PAGE_SHIFT)
        return out

    def unpin(self, paddr: int) -> None:
        self._shared.put(paddr)

    def access(self, paddr: int, offset: int, data: bytes | None, length: int) -> bytes:
        return self._shared.access(paddr + offset, data, length)

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._fd)


class ProgramFiles:
    """The descriptors of a process (:class:`guest_driver.iommufd.process.FileTable`) during one call of it."""

    def __init__(self, opened: OpenFiles, shared: SharedPages, listener: Listener) -> None:
        self._opened: Final = opened
        self._shared: Final = shared
        self._listener: Final = listener
        self.call: Call | None = None
        self.watch: list[Open] = []
        """Files that were installed during the call."""

    def reserve(self) -> int:
        """A free number among those whose reads and writes reach us."""
        assert self.call is not None
        for fd in range(FIRST_FILE, FIRST_FILE + FILES):
            if not os.path.lexists(f"/proc/{self.call.pid}/fd/{fd}"):
                return fd if fd < resource.prlimit(self.call.pid, resource.RLIMIT_NOFILE)[0] else -EMFILE
        return -EMFILE

    def unreserve(self, fd: int) -> None:
        pass

    def install(self, fd: int, file: object) -> None:
        assert self.call is not None
        made, theirs = self._opened.create(file)
        with theirs:
            self._listener.add_file(self.call, theirs.fileno(), True, fd)
        self.watch.append(made)

    def get(self, fd: int) -> object:
        assert self.call is not None
        found = self._opened.find(self.call.pid, fd)
        if found is not None:
            return found.file
        taken = take_fd(self.call.pid, fd)
        if taken is None:
            return None
        if stat.S_ISREG(os.fstat(taken).st_mode) and os.readlink(f"/proc/self/fd/{taken}").startswith(
            ("/memfd:", "/dev/shm/")
        ):
            return FileOfPages(taken, self._shared)
        os.close(taken)
        return taken  # something that is open and not ours


class Accounts:
    """Pinned pages by user, over all processes."""

    def __init__(self) -> None:
        self.pages: Final[dict[int, int]] = {}


class ProgramProcess(Process):
    """A process of the program."""

    __slots__ = ("_accounts", "_uid", "pid", "table")

    def __init__(
        self, pid: int, uid: int, capabilities: int, mm: ProgramMemory, table: ProgramFiles, of: Accounts
    ) -> None:
        self.pid: Final = pid
        self.table: Final = table
        self._uid: Final = uid
        self._accounts: Final = of
        super().__init__(mm, UNLIMITED, bool(capabilities >> _CAP_SYS_RESOURCE & 1), table)
        self.cap_ipc_lock = bool(capabilities >> _CAP_IPC_LOCK & 1)

    @property
    def memory(self) -> ProgramMemory:
        assert isinstance(self.mm, ProgramMemory)
        return self.mm

    @property
    def locked_vm(self) -> int:
        return self._accounts.pages.get(self._uid, 0)

    @locked_vm.setter
    def locked_vm(self, pages: int) -> None:
        if self._uid in self._accounts.pages or pages:
            self._accounts.pages[self._uid] = pages

    @property
    def rlimit_memlock(self) -> int:
        """The limit of locked memory as it is now."""
        try:
            limit = resource.prlimit(self.pid, resource.RLIMIT_MEMLOCK)[0]
        except OSError:
            return 0
        return UNLIMITED if limit == resource.RLIM_INFINITY else limit >> PAGE_SHIFT

    @rlimit_memlock.setter
    def rlimit_memlock(self, pages: int) -> None:
        """It is the program's to set."""


def process_status(pid: int) -> tuple[int, int, int] | None:
    """(process id, effective uid, effective capabilities) of a thread; ``None`` if it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            fields = dict(line.split(":", 1) for line in status)
    except OSError:
        return None
    return int(fields["Tgid"]), int(fields["Uid"].split()[1]), int(fields["CapEff"], 16)
