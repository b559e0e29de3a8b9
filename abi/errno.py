# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's error numbers, as a guest sees them negated in a hypercall's return register.

They are part of the ABI and do not follow the machine that this runs on, so Python's own ``errno`` is not used.
Numbers: Xen, public/errno.h (the same as Linux on x86 where both define a name).
"""

from typing import Final

EPERM: Final = 1
ENOENT: Final = 2
ESRCH: Final = 3
EINTR: Final = 4
EIO: Final = 5
ENXIO: Final = 6
E2BIG: Final = 7
ENOEXEC: Final = 8
EBADF: Final = 9
ECHILD: Final = 10
EAGAIN: Final = 11
ENOMEM: Final = 12
EACCES: Final = 13
EFAULT: Final = 14
EBUSY: Final = 16
EEXIST: Final = 17
EXDEV: Final = 18
ENODEV: Final = 19
ENOTDIR: Final = 20
EISDIR: Final = 21
EINVAL: Final = 22
ENFILE: Final = 23
EMFILE: Final = 24
ENOTTY: Final = 25
ENOSPC: Final = 28
EROFS: Final = 30
EMLINK: Final = 31
EDOM: Final = 33
ERANGE: Final = 34
EDEADLK: Final = 35
EDEADLOCK: Final = EDEADLK
ENAMETOOLONG: Final = 36
ENOLCK: Final = 37
ENOSYS: Final = 38
ENOTEMPTY: Final = 39
ENODATA: Final = 61
ETIME: Final = 62
EBADMSG: Final = 74
EOVERFLOW: Final = 75
EILSEQ: Final = 84
ERESTART: Final = 85
"""Inside the hypervisor only: the dispatcher turns it into a continuation.  A guest that sees it found a bug."""
ENOTSOCK: Final = 88
EMSGSIZE: Final = 90
EOPNOTSUPP: Final = 95
EADDRINUSE: Final = 98
EADDRNOTAVAIL: Final = 99
ENOBUFS: Final = 105
EISCONN: Final = 106
ENOTCONN: Final = 107
ETIMEDOUT: Final = 110
ECONNREFUSED: Final = 111

_NAMES: Final = {
    number: name
    for name, number in list(globals().items())
    if name.startswith("E") and isinstance(number, int) and name != "EDEADLOCK"
}


def errno_name(value: int) -> str:
    """``"ENOMEM"`` for 12 and -12, ``"0"`` for 0, ``"errno 4095"`` for a number without a name."""
    if value == 0:
        return "0"
    return _NAMES.get(abs(value), f"errno {abs(value)}")


def errno_number(name: str) -> int:
    """12 for ``"ENOMEM"`` or ``"-ENOMEM"``; ``ValueError`` for a name that Xen does not have."""
    for number, known in _NAMES.items():
        if known == name.lstrip("-").upper():
            return number
    raise ValueError(f"no error is called {name!r}")
