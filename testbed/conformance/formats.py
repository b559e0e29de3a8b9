# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry formats: what the radix algorithm takes for granted of a :class:`hypervisor.pagetable.format.Format`."""

from hypervisor.pagetable.format import ADDRESS_MASK
from testbed.conformance.clause import Clause, require
from testbed.conformance.rig import Rig

_FRAMES = (0x200, 0x40000, 0x80000)


def every_leaf_and_table_entry_is_told_from_empty(rig: Rig) -> None:
    """No leaf of any size and rights, and no table entry, is the all-zero word that means "empty"."""
    fmt = rig.driver.format
    require(fmt.table_bits, "a table entry for frame 0 would be zero")
    for level in (1, 2, 3):
        for rights, bits in fmt.permission.items():
            require(bits | fmt.leaf_bits[level], f"a level {level} leaf with rights {rights} for frame 0 would be zero")


def leaves_are_told_from_tables(rig: Rig) -> None:
    """Above level 1 a leaf never looks like a table entry, whatever its rights and software bits."""
    fmt = rig.driver.format
    for level in (2, 3):
        require(
            not fmt.is_leaf(_FRAMES[0] << 12 | fmt.table_bits, level), f"a table entry reads as a level {level} leaf"
        )
        for bits in fmt.permission.values():
            for extra in (0, fmt.referenced):
                entry = _FRAMES[1] << 12 | bits | extra | fmt.leaf_bits[level]
                require(fmt.is_leaf(entry, level), f"leaf {entry:#x} of level {level} does not read as one")


def rights_survive(rig: Rig) -> None:
    """What is written as readable (writable) reads as readable (writable), at every level, and nothing else does; a
    format that cannot say "write only" may say "read and write"."""
    fmt = rig.driver.format
    require(set(fmt.permission) == {1, 2, 3}, f"rights 1, 2 and 3 need entry bits, there are {sorted(fmt.permission)}")
    for level in (1, 2, 3):
        for rights, bits in fmt.permission.items():
            entry = _FRAMES[2] << 12 | bits | fmt.leaf_bits[level]
            require(
                rights == 2 or fmt.readable(entry) == bool(rights & 1),
                f"rights {rights} at level {level}: readable is wrong",
            )
            require(fmt.writable(entry) == bool(rights & 2), f"rights {rights} at level {level}: writable is wrong")


def bits_do_not_collide(rig: Rig) -> None:
    """Permission, kind and software bits lie outside the frame number, software bits outside what hardware reads."""
    fmt = rig.driver.format
    used = fmt.table_bits | fmt.read | fmt.write
    for bits in (*fmt.permission.values(), *fmt.leaf_bits):
        used |= bits
    require(not used & ADDRESS_MASK, f"bits {used & ADDRESS_MASK:#x} lie in the frame number")
    require(not fmt.software & (used | ADDRESS_MASK), f"software bits {fmt.software:#x} are not hardware's to ignore")
    require(fmt.referenced and fmt.referenced & ~fmt.software == 0, "the reference bit is not one of the software bits")


def a_leaf_can_change_its_level_and_back(rig: Rig) -> None:
    """Rewriting a leaf for another level keeps frame, rights and software bits."""
    fmt = rig.driver.format
    for rights, bits in fmt.permission.items():
        for old, new in ((1, 2), (2, 1), (2, 3), (3, 2)):
            entry = 0x40000 << 12 | bits | fmt.referenced | fmt.leaf_bits[old]
            other = fmt.at_level(entry, old, new)
            require(
                fmt.at_level(other, new, old) == entry, f"rights {rights}: level {old} to {new} and back changes bits"
            )
            require(other & ADDRESS_MASK == entry & ADDRESS_MASK, f"level {old} to {new} moves the frame")
            require(other & fmt.referenced, f"level {old} to {new} loses the reference bit")


FORMAT_CLAUSES: tuple[Clause, ...] = (
    every_leaf_and_table_entry_is_told_from_empty,
    leaves_are_told_from_tables,
    rights_survive,
    bits_do_not_collide,
    a_leaf_can_change_its_level_and_back,
)
