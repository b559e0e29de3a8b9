# SPDX-License-Identifier: GPL-2.0-or-later
"""What an ioctl costs a real program that runs under ``pviommu serve-iommufd``: asked in a loop, timed by the program.

The program is this Python, whose own ioctl call is measured beside it on a file of its own and taken off.
"""

import sys
import tempfile
from collections.abc import Iterator
from typing import Final

from benchmarks.figures import Figure
from benchmarks.lean import Lean
from testbed.serve import seccomp
from testbed.serve.description import Description
from testbed.serve.run import serve

BAR: Final = 60.0
"""Microseconds an ioctl may take."""

_PROGRAM: Final = """
import ctypes, fcntl, mmap, os, struct, sys, time
out, seconds = open(sys.argv[1], "w"), float(sys.argv[2])
fd = os.open("/dev/iommu", os.O_RDWR)
cmd = bytearray(struct.pack("<III", 12, 0, 0))
fcntl.ioctl(fd, 0x3B81, cmd)
ioas = struct.unpack("<III", cmd)[2]
option = bytearray(struct.pack("<IIHHIQ", 24, 1, 1, 0, ioas, 0))
ranges = (ctypes.c_uint64 * 8)()
iovas = bytearray(struct.pack("<IIIIQQ", 32, ioas, 4, 0, ctypes.addressof(ranges), 0))
memory = mmap.mmap(-1, 4096)
where = ctypes.addressof(ctypes.c_char.from_buffer(memory))
device = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
fcntl.ioctl(device, 0x3B76, bytearray(struct.pack("<IIiI", 16, 0, fd, 0)))
fcntl.ioctl(device, 0x3B77, bytearray(struct.pack("<III", 12, 0, ioas)))
map_page = bytearray(struct.pack("<IIIIQQQ", 40, 7, ioas, 0, where, 4096, 0x2000000))
unmap_page = bytearray(struct.pack("<IIQQ", 24, ioas, 0x2000000, 4096))
own = os.open("/dev/null", os.O_RDWR)

def empty():
    try:
        fcntl.ioctl(own, 0x5401, option)
    except OSError:
        pass

def map_unmap():
    fcntl.ioctl(fd, 0x3B85, map_page)
    fcntl.ioctl(fd, 0x3B86, unmap_page)

loops = {
    "own": (1, empty),
    "OPTION": (1, lambda: fcntl.ioctl(fd, 0x3B87, option)),
    "IOAS_IOVA_RANGES": (1, lambda: fcntl.ioctl(fd, 0x3B84, iovas)),
    "IOAS_MAP and IOAS_UNMAP of a page": (2, map_unmap),
}
for name, (calls, loop) in loops.items():
    taken, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 5:
        start = time.perf_counter()
        for _ in range(20):
            loop()
        taken.append((time.perf_counter() - start) / 20 / calls * 1e6)
    taken.sort()
    print(name, taken[0], taken[len(taken) // 2], sep="\\t", file=out)
"""


def figures(seconds: float, lean: Lean) -> Iterator[Figure]:
    """Microseconds an ioctl; nothing where there is no user notification."""
    try:
        seccomp.check()
    except seccomp.Unsupported as missing:
        print(f"serve-iommufd is not measured: {missing}", file=sys.stderr)
        return
    with tempfile.NamedTemporaryFile("r", suffix=".tsv") as report:
        outcome = serve(Description(), [sys.executable, "-c", _PROGRAM, report.name, str(seconds)])
        if outcome.status:
            raise ValueError(f"the measuring program ended with {outcome.status}")
        rows = [line.rstrip("\n").split("\t") for line in report]
    own = float(rows[0][1])
    for name, best, middle in rows[1:]:
        yield Figure("serve-iommufd", name, "us", float(best) - own, float(middle) - own, BAR)
