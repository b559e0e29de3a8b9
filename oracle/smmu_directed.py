# SPDX-License-Identifier: GPL-2.0-or-later
"""Directed programs for SMMUv3: each states what the manual says about one thing, and QEMU has to answer just that.

Places of ``flip`` count along the walk: first-level descriptor (in two-level stream tables), STE, context descriptor
(with stage 1), then descriptors from the top.  ``faults 0`` is an access that is blocked without an event.
"""

from collections.abc import Sequence
from typing import Final

from oracle.nested_driver import WINDOW
from oracle.program import Directed, directed

_TRANSLATION, _SIZE, _ACCESS, _PERMISSION = 0x10, 0x11, 0x12, 0x13
_BAD_STREAM, _STE_FETCH, _BAD_STE, _CD_FETCH, _BAD_CD, _WALK_ABORT = 2, 3, 4, 9, 0xA, 0xB
CHECKS_LEAVES: Final = 10
"""First version of QEMU that looks at AF and at the size of a leaf's address."""
_IOVA: Final = 0x4020_0008
"""Mapped one to one, so that a bypassed stream can be told from a blocked one."""


class _Machine:
    """Words for one kind of machine."""

    def __init__(self, stage: int, bits: int, linear: bool = False) -> None:
        self.stage: Final = stage
        self.bits: Final = bits
        self.first: Final = f"machine {stage} {bits} {int(linear)}\ncontext 1\ncontext 2\nattach 0 1\n"
        self.start: Final = f"{self.first}map 1 0x40200 0x40200 8 3\n"
        self.ste: Final = 0 if linear else 1
        self.cd: Final = self.ste + 1
        self.top: Final = self.ste + (2 if stage == 1 else 1)
        self.levels: Final = 4 if bits > 39 else 3
        self.leaf: Final = self.top + self.levels - 1

    def flipped(self, place: int, bits: Sequence[int], code: int, access: str = "write") -> str:
        """An access with wrong bits in one structure, all caches empty."""
        flips = "".join(f"flip 0 {_IOVA:#x} {place} {bit}\n" for bit in bits)
        return f"{flips}forget\n{access} 0 {_IOVA:#x}\nfaults {code}\nrestore\nforget\n"

    def harmless(self, place: int, bit: int) -> str:
        """Bits that are hints, or belong to software."""
        return f"flip 0 {_IOVA:#x} {place} {bit}\nforget\nwrite 0 {_IOVA:#x}\nreaches {_IOVA:#x}\nrestore\nforget\n"

    # Programs that both stages have.

    def sizes(self) -> str:
        """4 KiB, 2 MiB and 1 GiB pages at their edges, the end of the range, and what lies beyond."""
        last = (1 << self.bits) - 0x1000
        beyond = f"write 0 {last + 0x1000:#x}\nfaults {_TRANSLATION}\n" if self.bits < 44 else ""
        return f"""{self.first}
map 1 0x200 0x40200 600 3
write 0 0x200000
reaches 0x40200000
read 0 0x457ff8
reaches 0x40457ff8
write 0 0x458000
faults {_TRANSLATION}
map 1 0x80000 0x40000 0x40000 3
write 0 0x80000000
reaches 0x40000000
read 0 0xbffffff8
reaches 0x7ffffff8
map 1 {last >> 12:#x} 0x40077 1 3
write 0 {last + 0xFF8:#x}
reaches 0x40077ff8
{beyond}"""

    def descriptors(self, checks_leaves: bool) -> str:
        """Invalid descriptors at every level, one out of RAM, hints; AF and address size where the model looks."""
        levels = range(self.top, self.leaf + 1)
        cases = [self.flipped(place, (0,), _TRANSLATION) for place in levels]
        cases.append(self.flipped(self.leaf, (1,), _TRANSLATION))
        cases += [self.flipped(place, (43,), _WALK_ABORT) for place in levels[:-1]]
        cases += [self.harmless(self.leaf, bit) for bit in (8, 52, 55, 58)]
        if checks_leaves:
            cases.append(self.flipped(self.leaf, (10,), _ACCESS))
            cases.append(self.flipped(self.leaf, (45,), _SIZE))
        return self.start + "".join(cases)

    def streams(self) -> str:
        """Forms of the STE: invalid, abort, bypass, reserved; a stream without one."""
        abort = tuple(bit for bit in (1, 2, 3) if (0b101 if self.stage == 1 else 0b110) >> bit - 1 & 1)
        cases = [self.flipped(self.ste, (0,), _BAD_STE), self.flipped(self.ste, abort, 0)]
        bypass = (1,) if self.stage == 1 else (2,)
        passes = f"write 0 {_IOVA:#x}\nreaches {_IOVA:#x}\n"
        cases.append("".join(f"flip 0 {_IOVA:#x} {self.ste} {bit}\n" for bit in bypass) + f"forget\n{passes}")
        cases.append("restore\nforget\n")
        cases.append(self.flipped(self.ste, (3,), 0) if self.stage == 1 else self.flipped(self.ste, (3, 2, 1), 0))
        if self.ste:
            cases.append(self.flipped(0, (43,), _STE_FETCH))
            cases.append(self.flipped(0, (0, 3), _BAD_STREAM))
        return f"{self.start}{''.join(cases)}{passes}detach 0\nwrite 0 {_IOVA:#x}\nfaults 0\n"

    def stale(self) -> str:
        """TLB entries and configuration live until the right command names them, no longer."""
        passes, moved = f"reaches {_IOVA:#x}\n", f"reaches {_IOVA + 0x1_0000:#x}\n"
        write = f"write 0 {_IOVA:#x}\n"
        return (
            f"{self.start}{write}flip 0 {_IOVA:#x} {self.leaf} 16\n{write}{passes}"
            f"flush-page 0 {_IOVA + 0x1000:#x} 0 0\nflush-page 0 {_IOVA:#x} 0 1\nflush-all 0 2\n{write}{passes}"
            f"flush-page 0 {_IOVA:#x} 1 0\n{write}{moved}restore\n{write}{moved}flush-all 0 0\n{write}{passes}"
            f"flip 0 {_IOVA:#x} {self.ste} 0\n{write}{passes}flush-stream 0 1 8\n{write}{passes}"
            f"flush-stream 0 1 0\n{write}faults {_BAD_STE}\nrestore\nforget\n{write}{passes}"
        )

    def ranges(self, tag: int, op: int) -> str:
        """A range command drops exactly its pages; ``tag`` is that of context 1 in place."""
        pages = [_IOVA + 0x1000 * page for page in range(8)]
        touch = "".join(f"write 0 {page:#x}\n" for page in pages)
        flips = "".join(f"flip 0 {page:#x} {self.leaf} 16\n" for page in pages)
        command = f"command {tag | 3 << 12 | op:#x} {pages[4] & ~0xFFF | 1 << 10:#x}\n"
        checks = "".join(f"write 0 {page:#x}\nreaches {page + (page >= pages[4]) * 0x1_0000:#x}\n" for page in pages)
        return f"{self.start}{touch}{flips}{command}{checks}restore\nforget\n"

    def moves(self) -> str:
        """Devices between contexts, and out of all."""
        other = _IOVA + 0x10_0000
        return (
            f"{self.start}map 2 0x40200 0x40300 8 1\nwrite 0 {_IOVA:#x}\nreaches {_IOVA:#x}\n"
            f"attach 0 2\nread 0 {_IOVA:#x}\nreaches {other:#x}\nforget\nwrite 0 {_IOVA:#x}\nfaults {_PERMISSION}\n"
            f"attach 0 1\nwrite 0 {_IOVA:#x}\nreaches {_IOVA:#x}\ndetach 0\nwrite 0 {_IOVA:#x}\nfaults 0\n"
            f"free 1\nattach 0 2\nread 0 {_IOVA:#x}\nreaches {other:#x}\n"
        )

    def fold(self) -> str:
        """2 MiB in pieces until they fold, a page out of the middle and in again, DMA all the while."""
        text = [self.first]
        for first in range(0, 512, 64):
            text.append(f"map 1 {0x400 + first:#x} {0x40400 + first:#x} 64 3\nwrite 0 {0x400 + first << 12:#x}\n")
            text.append(f"reaches {0x40400 + first << 12:#x}\nread 0 0x400000\nreaches 0x40400000\n")
        text.append(f"unmap 1 0x44d 1\nwrite 0 0x44d000\nfaults {_TRANSLATION}\nwrite 0 0x44e000\nreaches 0x4044e000\n")
        text.append("write 0 0x400000\nreaches 0x40400000\nmap 1 0x44d 0x4044d 1 3\n")
        text.append("write 0 0x44d000\nreaches 0x4044d000\nunmap 1 0x400 512\n")
        text.append(f"write 0 0x400000\nfaults {_TRANSLATION}\nread 0 0x5ff000\nfaults {_TRANSLATION}\n")
        return "".join(text)

    def commands(self) -> str:
        """Commands that do not exist stop the queue; it goes on after the error was acknowledged."""
        bad = "".join(f"command {op:#x} 0\n" for op in (0x7F, 0x99, 0xFE))
        return f"{self.start}{bad}command 0x30 0\nwrite 0 {_IOVA:#x}\nreaches {_IOVA:#x}\n"

    def events(self) -> str:
        """More events than the queue has slots: it wraps."""
        return self.first + "".join(
            f"{'read' if k & 1 else 'write'} 0 {0x1000 * k:#x}\nfaults {_TRANSLATION}\n" for k in range(1, 150)
        )


def _stage_1(version: int) -> list[Directed]:
    wide, narrow, linear = _Machine(1, 48), _Machine(1, 39), _Machine(1, 48, linear=True)
    checks = version >= CHECKS_LEAVES
    read_only = "map 1 0x50000 0x40000 1 1\nread 0 0x50000000\nreaches 0x40000000\nwrite 0 0x50000000\n"
    along = "".join(wide.flipped(place, (62,), _PERMISSION) for place in range(wide.top, wide.leaf))
    rights = f"{wide.start}{read_only}faults {_PERMISSION}\n{along}{wide.harmless(wide.leaf, 6)}"
    cases = [wide.flipped(wide.cd, (bit,), _BAD_CD) for bit in (31, 41, 46, 4)]
    cases.append(wide.flipped(wide.cd, (14,), _TRANSLATION))
    cases.append(wide.flipped(wide.ste, (43,), _CD_FETCH))
    cases.append(wide.flipped(wide.cd, (64 + 43,), _WALK_ABORT))
    cases.append(wide.flipped(wide.cd, (45,), _PERMISSION).replace("faults 19", "reaches 0x40200008"))
    silent = f"flip 0 {_IOVA:#x} {wide.cd} 45\nforget\nwrite 0 0x1000\nfaults 0\nrestore\nforget\n"
    stale = (
        f"write 0 {_IOVA:#x}\nflip 0 {_IOVA:#x} {wide.cd} 31\nwrite 0 {_IOVA:#x}\nreaches {_IOVA:#x}\n"
        f"command 0x800000005 1\nwrite 0 {_IOVA:#x}\nfaults {_BAD_CD}\nrestore\nforget\n"
    )
    return [
        directed("s1-levels-4", "stage 1: pages of all sizes, 4 levels", wide.sizes()),
        directed("s1-levels-3", "stage 1: pages of all sizes, 3 levels, and beyond", narrow.sizes()),
        directed("s1-permissions", "read-only leaves, APTable along the walk, AP[1]", rights),
        directed("s1-descriptors", "stage 1 descriptors that are invalid, out of RAM, hints", wide.descriptors(checks)),
        directed("s1-streams", "STE forms in a two-level stream table", wide.streams()),
        directed("s1-linear", "STE forms in a linear stream table", linear.streams()),
        directed(
            "s1-cd", "context descriptors: every check, faults not recorded", wide.start + "".join(cases) + silent
        ),
        directed("s1-stale", "TLB and STE stale until the right page, ASID or stream is named", wide.stale()),
        directed("s1-stale-cd", "a context descriptor stale until CFGI_CD", wide.start + stale),
        directed("s1-ranges", "a range command drops exactly its pages", wide.ranges(1 << 48, 0x12)),
        directed("s1-moves", "devices between contexts", wide.moves()),
        directed("s1-fold-split", "blocks fold and split while DMA goes on", wide.fold()),
        directed("commands", "illegal commands and the queue after them", wide.commands()),
        directed("events", "the event queue wraps", wide.events()),
        directed(
            "substreams",
            "STE.S1CDMax: the model has no substreams and refuses it (a known deviation)",
            wide.start + wide.flipped(wide.ste, (59,), _BAD_STE),
        ),
    ]


def _stage_2(version: int) -> list[Directed]:
    wide, narrow, linear = _Machine(2, 44), _Machine(2, 39), _Machine(2, 44, linear=True)
    rights = "".join(
        f"map 1 {0x50000 + right:#x} 0x40000 1 {right}\n{good} 0 {0x50000 + right << 12:#x}\nreaches 0x40000000\n"
        f"forget\n{bad} 0 {0x50000 + right << 12:#x}\nfaults {_PERMISSION}\n"
        for right, good, bad in ((1, "read", "write"), (2, "write", "read"))
    )
    silent = f"flip 0 {_IOVA:#x} {wide.ste} {128 + 58}\nforget\nwrite 0 0x1000\nfaults 0\nrestore\nforget\n"
    stage_2 = [wide.flipped(wide.ste, (128 + 46, 128 + 47), _BAD_STE), wide.flipped(wide.ste, (192 + 43,), _WALK_ABORT)]
    return [
        directed("s2-levels-4", "stage 2: pages of all sizes, 4 levels", wide.sizes()),
        directed("s2-levels-3", "stage 2: pages of all sizes, 3 levels, and beyond", narrow.sizes()),
        directed("s2-permissions", "S2AP: read only, write only", wide.start + rights),
        directed(
            "s2-descriptors",
            "stage 2 descriptors that are invalid, out of RAM, hints",
            wide.descriptors(version >= CHECKS_LEAVES),
        ),
        directed("s2-streams", "STE forms in a two-level stream table", wide.streams()),
        directed("s2-linear", "STE forms in a linear stream table", linear.streams()),
        directed("s2-ste", "stage 2 fields of the STE, faults not recorded", wide.start + "".join(stage_2) + silent),
        directed("s2-stale", "TLB and STE stale until the right page, VMID or stream is named", wide.stale()),
        directed("s2-ranges", "a range command drops exactly its pages", wide.ranges(1 << 32, 0x2A)),
        directed("s2-moves", "devices between contexts", wide.moves()),
        directed("s2-fold-split", "blocks fold and split while DMA goes on", wide.fold()),
    ]


def _both_stages() -> list[Directed]:
    """What is mapped lies in intermediate addresses, :data:`WINDOW` above where the DMA arrives."""
    frame = 0x4_0200 + (WINDOW >> 12)
    reads_only = (
        f"map 1 0x600 {frame:#x} 1 1\nread 0 0x600000\nreaches 0x40200000\nwrite 0 0x600000\nfaults {_PERMISSION}\n"
    )
    named = "flush-page 0 0x201000 0 0\nflush-page 0 0x200000 0 1\nflush-all 0 2\n"
    pages = f"""machine 3 48 0
context 1
context 2
attach 0 1
map 1 0x200 {frame:#x} 600 3
write 0 0x200010
reaches 0x40200010
read 0 0x457ff8
reaches 0x40457ff8
write 0 0x458000
faults {_TRANSLATION}
map 1 0x80000 {frame - 0x200:#x} 0x40000 3
read 0 0xbffffff8
reaches 0x7ffffff8
{reads_only}{named}unmap 1 0x200 1
write 0 0x200010
faults {_TRANSLATION}
map 2 0x200 {frame + 0x800:#x} 8 3
attach 0 2
write 0 0x200010
reaches 0x40a00010
detach 0
write 0 0x200010
faults 0
"""
    return [directed("nested", "stage 1 above stage 2: pages of all sizes, rights, moves", pages)]


def programs(version: int, stages: Sequence[int]) -> list[Directed]:
    """Those that QEMU ``version``, whose SMMU can be of these ``stages``, can run."""
    return [*_stage_1(version), *(_stage_2(version) if 2 in stages else ()), *(_both_stages() if 3 in stages else ())]
