# SPDX-License-Identifier: GPL-2.0-or-later
"""Directed programs for VT-d: each states what the manual says about one thing, and QEMU has to answer just that.

``flip DEVICE ADDRESS PLACE BIT`` counts places along the walk: 0 root entry, 1 context entry (bits 64 and up are its
upper word), then the second-stage entries from the top.  ``reaches`` and ``faults`` are about the access before.
"""

from collections.abc import Sequence
from typing import Final

from oracle.program import Directed, directed

_ROOT, _CONTEXT, _TOP, _PDPE, _PDE, _LEAF = range(6)
_NO_WRITE, _NO_READ, _RESERVED = 5, 6, 0xC


def _start(bits: int = 48) -> str:
    return f"machine {bits} 0 0\ncontext 1\ncontext 2\nattach 0 1\n"


def _sizes(bits: int) -> str:
    """A 4 KiB, a 2 MiB and a 1 GiB page, at their edges, and the end of the address range."""
    last = (1 << bits) - 0x1000
    return f"""{_start(bits)}
map 1 0x200 0x40200 600 3
write 0 0x200000
reaches 0x40200000
read 0 0x457ff8
reaches 0x40457ff8
write 0 0x458000
faults {_NO_WRITE}
map 1 0x80000 0x40000 0x40000 3
write 0 0x80000000
reaches 0x40000000
read 0 0xbfff_fff8
reaches 0x7ffffff8
map 1 {last >> 12:#x} 0x40077 1 3
write 0 {last + 0xFF8:#x}
reaches 0x40077ff8
write 0 {last + 0x1000:#x}
faults 4
read 0 {1 << 63:#x}
faults 4
"""


def _denials() -> str:
    """Rights of a leaf, and rights along the walk; caches are emptied because QEMU does not report cached denials."""
    leaf = """
map 1 0x300 0x40300 1 1
map 1 0x301 0x40301 1 2
read 0 0x300010
reaches 0x40300010
forget
write 0 0x300010
faults 5
write 0 0x301010
reaches 0x40301010
forget
read 0 0x301010
faults 6
map 1 0x310 0x40310 1 3
"""
    along = "".join(
        f"flip 0 0x310000 {place} {right}\nforget\n{access} 0 0x310000\nfaults {code}\nrestore\nforget\n"
        for place in (_TOP, _PDPE, _PDE, _LEAF)
        for right, access, code in ((1, "write", _NO_WRITE), (0, "read", _NO_READ))
    )
    return _start() + leaf + along + "write 0 0x310000\nreaches 0x40310000\n"


def _flipped(place: int, bit: int, code: int, access: str = "write", iova: int = 0x20_0008) -> str:
    return f"flip 0 {iova:#x} {place} {bit}\nforget\n{access} 0 {iova:#x}\nfaults {code}\nrestore\nforget\n"


def _reserved() -> str:
    """Reserved bits of every structure, misaligned superpages, a superpage where there is none."""
    cases = [_flipped(_ROOT, bit, 0xA) for bit in (1, 11)]
    cases += [_flipped(_CONTEXT, bit, 0xB) for bit in (4, 11, 64 + 7, 64 + 24, 127)]
    cases += [_flipped(place, 51, _RESERVED) for place in (_TOP, _PDPE, _PDE, _LEAF)]
    cases.append(_flipped(_LEAF, 11, _RESERVED))
    cases.append(_flipped(_TOP, 7, _RESERVED))
    cases += [_flipped(_PDE, bit, _RESERVED, iova=0x60_0000) for bit in (12, 20)]
    return f"{_start()}map 1 0x200 0x40200 8 3\nmap 1 0x600 0x40600 512 3\n{''.join(cases)}write 0 0x600ff8\n"


def _reasons() -> str:
    """Every fault reason of legacy mode that can be had, its record compared word by word; FPD silences."""
    cases = [
        _flipped(_ROOT, 0, 1),
        _flipped(_CONTEXT, 0, 2),
        f"flip 0 0x200008 {_CONTEXT} 2\n" + _flipped(_CONTEXT, 3, 3),
        _flipped(_CONTEXT, 64 + 1, 3),
        _flipped(_CONTEXT, 46, 3),
        _flipped(_PDPE, 46, 7),
        _flipped(_ROOT, 46, 9),
        _flipped(_LEAF, 0, _NO_READ, "read"),
    ]
    silent = "flip 0 0x200008 1 1\nflip 0 0x200008 1 0\nforget\nwrite 0 0x200008\nfaults 0\nrestore\nforget\n"
    gone = "detach 0\nwrite 0 0x200008\nfaults 2\nwrite 3 0x200008\nfaults 2\n"
    return f"{_start()}map 1 0x200 0x40200 8 3\n{''.join(cases)}{silent}{gone}"


_STALE: Final = f"""{_start()}
attach 1 2
map 1 0x500 0x40500 8 3
map 2 0x500 0x40600 8 3
write 0 0x500000
reaches 0x40500000
flip 0 0x500000 {_LEAF} 12
write 0 0x500000
reaches 0x40500000
flush-pages 0 0x501000 0 0 0
flush-pages 0 0x500000 0 0 1
flush-domain 0 1
flush-device 0 3 0
flush-device 0 1 0
write 0 0x500000
reaches 0x40500000
flush-pages 0 0x500000 0 0 0
write 0 0x500000
reaches 0x40501000
restore
write 0 0x500000
reaches 0x40501000
flush-domain 0 0
write 0 0x500000
reaches 0x40500000
write 1 0x500000
reaches 0x40600000
flip 1 0x500000 {_LEAF} 12
flush-domain 0 0
write 1 0x500000
reaches 0x40600000
flush-domain 1 0
write 1 0x500000
reaches 0x40601000
"""

_PAGES: Final = range(0x500, 0x508)


def _after_partial(page: int) -> int:
    """Frame of a page once four of the eight were invalidated and all entries point 16 frames further."""
    return (0x40000 | page) + (16 if page >= 0x504 else 0)


_PARTIAL: Final = "".join(
    [
        _start(),
        "map 1 0x500 0x40500 8 3\nmap 1 0x800 0x40800 512 3\n",
        *(f"write 0 {page << 12:#x}\n" for page in _PAGES),
        *(f"flip 0 {page << 12:#x} {_LEAF} 16\n" for page in _PAGES),
        "flush-pages 0 0x504000 2 0 0\n",
        *(f"write 0 {page << 12:#x}\nreaches {_after_partial(page) << 12:#x}\n" for page in _PAGES),
        "restore\nforget\n",
        # One 4 KiB page named inside a cached 2 MiB page takes the whole of it along.
        f"write 0 0x800000\nwrite 0 0x9ff000\nflip 0 0x800000 {_PDE} 22\nwrite 0 0x9ff000\nreaches 0x409ff000\n",
        "flush-pages 0 0x845000 0 0 0\nwrite 0 0x9ff000\nreaches 0x40dff000\nwrite 0 0x800000\nreaches 0x40c00000\n",
    ]
)

_MOVES: Final = f"""{_start()}
map 1 0x200 0x40200 8 3
map 2 0x200 0x40300 8 1
write 0 0x200000
reaches 0x40200000
attach 0 2
read 0 0x200000
reaches 0x40300000
attach 0 1
write 0 0x200000
reaches 0x40200000
flip 0 0x200000 {_CONTEXT} 0
write 0 0x200000
reaches 0x40200000
flush-device 0 3 0
flush-domain 0 0
write 0 0x200000
faults 2
restore
forget
write 0 0x200000
reaches 0x40200000
detach 0
write 0 0x200000
faults 2
free 1
attach 0 2
read 0 0x207000
reaches 0x40307000
"""

_FOLD: Final = "".join(
    [
        _start(),
        *(
            f"map 1 {0x400 + first:#x} {0x40400 + first:#x} 64 3\n"
            f"write 0 {0x400 + first << 12:#x}\nreaches {0x40400 + first << 12:#x}\n"
            "read 0 0x400000\nreaches 0x40400000\n"
            for first in range(0, 512, 64)
        ),
        "unmap 1 0x44d 1\nwrite 0 0x44d000\nfaults 5\nwrite 0 0x44e000\nreaches 0x4044e000\n",
        "write 0 0x400000\nreaches 0x40400000\nmap 1 0x44d 0x4044d 1 3\nwrite 0 0x44d000\nreaches 0x4044d000\n",
        "unmap 1 0x400 512\nwrite 0 0x400000\nfaults 5\nread 0 0x5ff000\nfaults 6\n",
        "map 1 0x40000 0x40000 0x40000 3\nread 0 0x7fffffff8\nfaults 6\nread 0 0x7ffffff8\nreaches 0x7ffffff8\n",
        "unmap 1 0x60000 1\nread 0 0x60000000\nfaults 6\nread 0 0x60001000\nreaches 0x60001000\n",
        "read 0 0x40000000\nreaches 0x40000000\n",
    ]
)

_BAD_COMMANDS: Final = f"""{_start()}
map 1 0x200 0x40200 1 3
descriptor 0x41 0
descriptor 0xf 0
descriptor 0x2 0
descriptor 0x1 0
descriptor 0xf2 0xfc0
descriptor 0x25 0
write 0 0x200000
reaches 0x40200000
"""

PROGRAMS: Final[Sequence[Directed]] = (
    directed("levels-3", "4 KiB, 2 MiB and 1 GiB pages of a 3-level tree, its last page, beyond", _sizes(39)),
    directed("levels-4", "the same of a 4-level tree", _sizes(48)),
    directed("permissions", "rights of leaves and along the walk", _denials()),
    directed("reserved", "reserved bits of root, context and second-stage entries", _reserved()),
    directed("reasons", "fault reasons and records; FPD", _reasons()),
    directed("stale", "a cached translation lives until the right page, DID or domain is named, no longer", _STALE),
    directed("partial", "a page-selective invalidation drops its pages, and a superpage it touches", _PARTIAL),
    directed("moves", "devices between contexts, context entries stale until the context cache is told", _MOVES),
    directed("fold-split", "superpages fold and split while DMA goes on", _FOLD),
    directed("commands", "descriptors that stop the queue, and the queue going on after them", _BAD_COMMANDS),
)
