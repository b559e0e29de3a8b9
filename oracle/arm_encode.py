# SPDX-License-Identifier: GPL-2.0-or-later
"""The few A64 instructions that the CPU walker's program needs, encoded (Arm ARM C6.2).

Each method appends one instruction and remembers how an assembler would spell it, so that a test can hold the words
against a real assembler's where there is one.
"""

from typing import Final

XZR: Final = 31

SYSTEM_REGISTERS: Final = {
    # name: (op0, op1, CRn, CRm, op2)
    "sctlr_el1": (3, 0, 1, 0, 0),
    "ttbr0_el1": (3, 0, 2, 0, 0),
    "tcr_el1": (3, 0, 2, 0, 2),
    "par_el1": (3, 0, 7, 4, 0),
    "mair_el1": (3, 0, 10, 2, 0),
    "hcr_el2": (3, 4, 1, 1, 0),
    "vttbr_el2": (3, 4, 2, 1, 0),
    "vtcr_el2": (3, 4, 2, 1, 2),
    "elr_el2": (3, 4, 4, 0, 1),
    "esr_el2": (3, 4, 5, 2, 0),
    "vbar_el2": (3, 4, 12, 0, 0),
}

ADDRESS_TRANSLATION: Final = {
    # name: (op1, CRm, op2); CRn is 7
    "s12e1r": (4, 8, 4),
    "s12e1w": (4, 8, 5),
}


class Program:
    """Instructions from address 0 on; branches go to labels, which may come later."""

    def __init__(self) -> None:
        self._words: Final[list[int]] = []
        self.source: Final[list[str]] = []
        """One line of assembler for each word, and one for each label."""
        self._labels: Final[dict[str, int]] = {}
        self._branches: Final[list[tuple[int, str, int, int]]] = []
        """(word, label, position of the offset in the instruction, its width)."""

    def words(self) -> list[int]:
        """The finished code; ``KeyError`` for a label that is nowhere."""
        words = list(self._words)
        for at, label, position, width in self._branches:
            offset = self._labels[label] - at
            if not -(1 << width - 1) <= offset < 1 << width - 1:
                raise ValueError(f"{label} is too far away")
            words[at] |= (offset & (1 << width) - 1) << position
        return words

    def text(self) -> str:
        """The same for an assembler."""
        return "".join(f"{line}\n" for line in self.source)

    def label(self, name: str) -> None:
        self._labels[name] = len(self._words)
        self.source.append(f"{name}:")

    def align(self, size: int) -> None:
        """Fill up with ``nop`` to a multiple of ``size`` bytes."""
        while len(self._words) * 4 % size:
            self._add(0xD503201F, "nop")

    def _add(self, word: int, spelled: str) -> None:
        self._words.append(word)
        self.source.append(f"    {spelled}")

    def _branch(self, word: int, spelled: str, label: str, position: int, width: int) -> None:
        self._branches.append((len(self._words), label, position, width))
        self._add(word, f"{spelled}{label}")

    # Moves and arithmetic.

    def load_constant(self, d: int, value: int) -> None:
        """A 64-bit constant, 16 bits at a time."""
        self._add(0xD2800000 | (value & 0xFFFF) << 5 | d, f"movz x{d}, #{value & 0xFFFF}")
        for part in (1, 2, 3):
            piece = value >> 16 * part & 0xFFFF
            if piece:
                self._add(0xF2800000 | part << 21 | piece << 5 | d, f"movk x{d}, #{piece}, lsl #{16 * part}")

    def insert_top(self, d: int, piece: int) -> None:
        """Bits 63:48 of a register."""
        self._add(0xF2E00000 | piece << 5 | d, f"movk x{d}, #{piece}, lsl #48")

    def move(self, d: int, m: int) -> None:
        self._add(0xAA0003E0 | m << 16 | d, f"mov x{d}, x{m}")

    def or_with(self, d: int, n: int, m: int) -> None:
        self._add(0xAA000000 | m << 16 | n << 5 | d, f"orr x{d}, x{n}, x{m}")

    def subtract(self, d: int, n: int, value: int) -> None:
        self._add(0xD1000000 | value << 10 | n << 5 | d, f"sub x{d}, x{n}, #{value}")

    def compare(self, n: int, m: int) -> None:
        self._add(0xEB00001F | m << 16 | n << 5, f"cmp x{n}, x{m}")

    def address_of(self, d: int, label: str) -> None:
        """ADR of a label at a multiple of 4, so that its two low offset bits are 0."""
        self._branch(0x10000000 | d, f"adr x{d}, ", label, 5, 19)

    # Memory.

    def load(self, t: int, n: int, offset: int = 0) -> None:
        self._add(0xF9400000 | offset // 8 << 10 | n << 5 | t, f"ldr x{t}, [x{n}, #{offset}]")

    def store(self, t: int, n: int, offset: int = 0) -> None:
        self._add(0xF9000000 | offset // 8 << 10 | n << 5 | t, f"str x{t}, [x{n}, #{offset}]")

    def load_next(self, t: int, n: int) -> None:
        """Load and step on by 8."""
        self._add(0xF8408400 | n << 5 | t, f"ldr x{t}, [x{n}], #8")

    def store_next(self, t: int, n: int) -> None:
        self._add(0xF8008400 | n << 5 | t, f"str x{t}, [x{n}], #8")

    # Branches.

    def branch(self, label: str) -> None:
        self._branch(0x14000000, "b ", label, 0, 26)

    def branch_if_equal(self, label: str) -> None:
        self._branch(0x54000000, "b.eq ", label, 5, 19)

    def branch_if_zero(self, t: int, label: str) -> None:
        self._branch(0xB4000000 | t, f"cbz x{t}, ", label, 5, 19)

    def branch_if_not_zero(self, t: int, label: str) -> None:
        self._branch(0xB5000000 | t, f"cbnz x{t}, ", label, 5, 19)

    def branch_if_bit(self, t: int, bit: int, label: str) -> None:
        """If bit ``bit`` (0 to 31) of a register is 1."""
        self._branch(0x37000000 | bit << 19 | t, f"tbnz x{t}, #{bit}, ", label, 5, 14)

    # System.

    def write_system(self, name: str, t: int) -> None:
        self._add(0xD5100000 | _system(name) | t, f"msr {name}, x{t}")

    def read_system(self, t: int, name: str) -> None:
        self._add(0xD5300000 | _system(name) | t, f"mrs x{t}, {name}")

    def translate_address(self, name: str, t: int) -> None:
        """AT: translate the address in a register; the answer is in PAR_EL1."""
        op1, crm, op2 = ADDRESS_TRANSLATION[name]
        self._add(0xD5080000 | op1 << 16 | 7 << 12 | crm << 8 | op2 << 5 | t, f"at {name}, x{t}")

    def invalidate_tlb(self) -> None:
        """TLBI ALLE1: everything of the guest's stages."""
        self._add(0xD5080000 | 4 << 16 | 8 << 12 | 7 << 8 | 4 << 5 | XZR, "tlbi alle1")

    def barriers(self) -> None:
        self._add(0xD5033F9F, "dsb sy")
        self._add(0xD5033FDF, "isb")

    def isb(self) -> None:
        self._add(0xD5033FDF, "isb")

    def relax(self) -> None:
        self._add(0xD503203F, "yield")

    def exception_return(self) -> None:
        self._add(0xD69F03E0, "eret")


def _system(name: str) -> int:
    op0, op1, crn, crm, op2 = SYSTEM_REGISTERS[name]
    return (op0 - 2) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
