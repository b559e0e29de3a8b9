# SPDX-License-Identifier: GPL-2.0-or-later
"""Seccomp user notification: which system calls of a program stop until a supervisor has answered them.

The filter stops opening files, ioctls of type ``;`` (iommufd and VFIO), the end of a process or of its memory, and
reading and writing of descriptors in a range of their own, where the supervisor puts the files that can be read.
Everything else runs at full speed.  Sources: seccomp_unotify(2), include/uapi/linux/seccomp.h.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

FIRST_FILE: Final = 700
FILES: Final = 128
"""Descriptors FIRST_FILE to FIRST_FILE + FILES - 1 are those whose reads and writes stop."""
CONTINUE: Final = 1

_IOMMUFD_TYPE: Final = ord(";")
_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBERS: Final = {
    "x86_64": {
        "read": 0, "write": 1, "open": 2, "ioctl": 16, "pread64": 17, "pwrite64": 18, "execve": 59,
        "exit_group": 231, "openat": 257, "execveat": 322, "openat2": 437, "seccomp": 317,
    },
    "aarch64": {
        "read": 63, "write": 64, "ioctl": 29, "pread64": 67, "pwrite64": 68, "execve": 221,
        "exit_group": 94, "openat": 56, "execveat": 281, "openat2": 437, "seccomp": 277,
    },
}  # fmt: skip
_ALWAYS: Final = ("open", "openat", "openat2", "execve", "execveat", "exit_group")
_BY_DESCRIPTOR: Final = ("read", "write", "pread64", "pwrite64")

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER: Final = 1
_GET_NOTIF_SIZES: Final = 3
_NEW_LISTENER: Final = 1 << 3
_WAIT_KILLABLE: Final = 1 << 5
_RET_ALLOW: Final = 0x7FFF0000
_RET_USER_NOTIF: Final = 0x7FC00000
_LD, _RSH, _AND, _JEQ, _JGE, _RET = 0x20, 0x74, 0x54, 0x15, 0x35, 0x06
_ARCH_AT, _NR_AT, _ARG0_AT, _ARG1_AT = 4, 0, 16, 24

_NOTIF: Final = struct.Struct("<QIIiIQ6Q")
_RESPONSE: Final = struct.Struct("<QqiI")
_ADDFD: Final = struct.Struct("<QIIII")
_SYNC_WAKE_UP: Final = 1
_ADDFD_SETFD, _ADDFD_SEND = 1, 2
_RECV: Final = 0xC0000000 | _NOTIF.size << 16 | 0x2100
_SEND: Final = 0xC0000000 | _RESPONSE.size << 16 | 0x2101
_ID_VALID: Final = 0x40000000 | 8 << 16 | 0x2102
_ADD: Final = 0x40000000 | _ADDFD.size << 16 | 0x2103
_SET_FLAGS: Final = 0x40000000 | 8 << 16 | 0x2104
_ZEROS: Final = bytes(_NOTIF.size)


class Unsupported(Exception):
    """This kernel, machine or sandbox has no user notification; the text says what is missing."""


class Call(NamedTuple):
    """A system call that waits for its answer."""

    id: int
    pid: int
    """The calling thread."""
    name: str
    args: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Arch:
    audit: int
    numbers: dict[str, int]


def _arch() -> _Arch:
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in _NUMBERS:
        raise Unsupported(f"seccomp user notification is used on Linux on x86_64 and aarch64, not on {machine}")
    return _Arch(_AUDIT_ARCH[machine], _NUMBERS[machine])


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def check() -> None:
    """:class:`Unsupported` unless the kernel has user notification with structs of the sizes used here."""
    arch = _arch()
    sizes = (ctypes.c_uint16 * 3)()
    number = ctypes.c_long(arch.numbers["seccomp"])
    if _libc().syscall(number, ctypes.c_long(_GET_NOTIF_SIZES), ctypes.c_long(0), ctypes.byref(sizes)):
        reason = os.strerror(ctypes.get_errno())
        raise Unsupported(f"this kernel or sandbox has no seccomp user notification ({reason})")
    if tuple(sizes) != (_NOTIF.size, _RESPONSE.size, 64):
        raise Unsupported(f"seccomp notifications of unknown sizes {tuple(sizes)}")


def _program(arch: _Arch) -> bytes:
    """The filter as struct sock_filter entries."""
    simple = [arch.numbers[name] for name in _ALWAYS if name in arch.numbers]
    by_descriptor = [arch.numbers[name] for name in _BY_DESCRIPTOR]
    # Labels are resolved after the list is complete: jumps count from the next instruction.
    code: list[tuple[int, int | str, int | str, int]] = [
        (_LD, 0, 0, _ARCH_AT),
        (_JEQ, 0, "allow", arch.audit),
        (_LD, 0, 0, _NR_AT),
    ]
    code += [(_JEQ, "notify", 0, number) for number in simple]
    code += [(_JEQ, "descriptor", 0, number) for number in by_descriptor]
    code.append((_JEQ, 0, "allow", arch.numbers["ioctl"]))
    code += [(_LD, 0, 0, _ARG1_AT), (_RSH, 0, 0, 8), (_AND, 0, 0, 0xFF), (_JEQ, "notify", "allow", _IOMMUFD_TYPE)]
    labels = {"descriptor": len(code)}
    code += [(_LD, 0, 0, _ARG0_AT), (_JGE, 0, "allow", FIRST_FILE), (_JGE, "allow", "notify", FIRST_FILE + FILES)]
    labels["allow"] = len(code)
    code.append((_RET, 0, 0, _RET_ALLOW))
    labels["notify"] = len(code)
    code.append((_RET, 0, 0, _RET_USER_NOTIF))
    out = bytearray()
    for at, (operation, yes, no, value) in enumerate(code):
        jumps = [labels[jump] - at - 1 if isinstance(jump, str) else jump for jump in (yes, no)]
        out += struct.pack("<HBBI", operation, *jumps, value)
    return bytes(out)


def _install() -> int:
    """Put the filter on the calling process; the descriptor of the listener."""
    arch = _arch()
    libc = _libc()
    zero = ctypes.c_long(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_long(1), zero, zero, zero):
        raise Unsupported(f"no_new_privs: {os.strerror(ctypes.get_errno())}")
    program = _program(arch)
    held = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(struct.pack("@HxxxxxxQ", len(program) // 8, ctypes.addressof(held)))
    number, mode = ctypes.c_long(arch.numbers["seccomp"]), ctypes.c_long(_SET_MODE_FILTER)
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        listener = int(libc.syscall(number, mode, ctypes.c_long(flags), fprog))
        if listener >= 0:
            return listener
    raise Unsupported(f"the filter was refused ({os.strerror(ctypes.get_errno())})")


def start(argv: Sequence[str], ready: Callable[[], None] = lambda: None) -> tuple[int, Listener]:
    """Run ``argv`` under the filter; its process id and the listener.  :class:`Unsupported` if it cannot be.

    ``ready`` is called in the new process before the filter is put on it.  A program that cannot be executed is a
    message of the new process and its status 127.
    """
    check()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        ours.close()
        _become(argv, theirs, ready)
    theirs.close()
    with ours:
        message, ancillary, _, _ = ours.recvmsg(256, socket.CMSG_SPACE(4))
    if not ancillary:
        os.waitpid(pid, 0)
        raise Unsupported(message.decode() or "the filter could not be installed")
    received = array.array("i", ancillary[0][2][:4])
    return pid, Listener(received[0])


def _become(argv: Sequence[str], channel: socket.socket, ready: Callable[[], None]) -> NoReturn:
    """In the new process: filter, hand the listener over, execute."""
    try:
        ready()
        _libc().prctl(_PR_SET_PDEATHSIG, ctypes.c_long(9))
        listener = _install()
        channel.sendmsg([b"ok"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
        os.close(listener)
        channel.close()
        os.execvp(argv[0], list(argv))
    except Unsupported as missing:
        channel.send(str(missing).encode()[:256])
    except OSError as error:
        os.write(2, f"pviommu: {argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


class Listener:
    """The supervisor's end."""

    def __init__(self, fd: int) -> None:
        self.fd: Final = fd
        names = _arch().numbers
        self._names: Final = {number: name for name, number in names.items()}
        try:
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)  # the answer wakes the program on this CPU: half the latency
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):  # before Linux 6.6
                raise

    def receive(self) -> Call | None:
        """The next call; ``None`` if its thread has gone meanwhile."""
        try:
            raw = fcntl.ioctl(self.fd, _RECV, _ZEROS)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        number, pid, _, nr, _, _, *args = _NOTIF.unpack(raw)
        return Call(number, pid, self._names.get(nr, ""), tuple(args))

    def answer(self, call: Call, result: int) -> None:
        """The call returns ``result``, -errno included."""
        self._respond(_RESPONSE.pack(call.id, max(result, 0), min(result, 0), 0))

    def let_pass(self, call: Call) -> None:
        """The kernel does the call as if nothing had stopped it."""
        self._respond(_RESPONSE.pack(call.id, 0, 0, CONTINUE))

    def answer_with_file(self, call: Call, fd: int, cloexec: bool, at: int | None = None) -> bool:
        """The call returns a new descriptor of the program for our ``fd``, number ``at`` if given; whether it did."""
        return self.add_file(call, fd, cloexec, at, send=True)

    def add_file(self, call: Call, fd: int, cloexec: bool, at: int | None, send: bool = False) -> bool:
        """Give the program a descriptor while it waits; whether it could be given."""
        flags = (_ADDFD_SETFD if at is not None else 0) | (_ADDFD_SEND if send else 0)
        try:
            fcntl.ioctl(self.fd, _ADD, _ADDFD.pack(call.id, flags, fd, at or 0, os.O_CLOEXEC if cloexec else 0))
        except OSError:
            return False
        return True

    def alive(self, call: Call) -> bool:
        """Whether the calling thread still waits, so that its pid is still its own."""
        try:
            fcntl.ioctl(self.fd, _ID_VALID, struct.pack("<Q", call.id))
        except OSError:
            return False
        return True

    def _respond(self, response: bytes) -> None:
        try:
            fcntl.ioctl(self.fd, _SEND, response)
        except OSError as error:
            if error.errno != errno.ENOENT:  # killed while it waited
                raise

    def close(self) -> None:
        os.close(self.fd)
