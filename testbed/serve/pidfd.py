# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors of other processes: a copy of one of theirs (pidfd_getfd(2))."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_PIDFD_GETFD: Final = 438
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def take_fd(pid: int, fd: int) -> int | None:
    """Our own descriptor for what ``fd`` of thread ``pid`` is; ``None`` if it is not open, or may not be had.

    Threads share their process's table, which is asked for by the process.
    """
    try:
        process = os.pidfd_open(_leader(pid))
    except OSError:
        return None
    try:
        got = _libc.syscall(ctypes.c_long(_PIDFD_GETFD), ctypes.c_long(process), ctypes.c_long(fd), ctypes.c_long(0))
    finally:
        os.close(process)
    return None if got < 0 else int(got)


def _leader(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return pid
