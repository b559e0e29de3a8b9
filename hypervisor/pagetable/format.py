# SPDX-License-Identifier: GPL-2.0-or-later
"""What the radix algorithm needs to know of an entry format, as a value.

A format is data, not code, so that the loops work on plain ints: an entry of level ``L`` with permission bits
``perm`` for machine frame ``mfn`` is ``mfn << 12 | perm | leaf_bits[L]``.  Requirements on a format:

* an empty entry is 0, and every leaf or table entry is not;
* ``step[L]`` added to a leaf of level ``L`` gives the leaf of the next frames of that size;
* permission and software bits sit at the same place at every level.
"""

from dataclasses import dataclass
from typing import Final

ADDRESS_MASK: Final = 0x000F_FFFF_FFFF_F000
"""Bits 51:12, where both VT-d and VMSAv8-64 (4 KiB granule) keep the frame."""


@dataclass(frozen=True, eq=False)
class Format:
    """One vendor's entries.  Level-indexed tuples have an unused element 0; a format is equal to itself alone."""

    name: str
    leaf_bits: tuple[int, ...]
    """Bits that make an entry a leaf of level 1, 2, 3."""
    table_bits: int
    """Bits that make an entry a pointer to a table."""
    kind_mask: int
    """Above level 1, ``entry & kind_mask == leaf_kind`` tells a leaf from a table pointer."""
    leaf_kind: int
    read: int
    write: int
    permission: dict[int, int]
    """Entry bits for (readable | writable << 1): 1, 2, 3."""
    referenced: int
    """A software bit: this leaf holds a reference on its frames."""
    software: int
    """All bits that hardware ignores and the algorithm must carry along."""

    @property
    def present(self) -> int:
        """Bits of which at least one is set in every entry that hardware follows."""
        return self.leaf_bits[1] & self.leaf_bits[2] & self.table_bits or self.read | self.write

    def is_leaf(self, entry: int, level: int) -> bool:
        """Whether a non-empty ``entry`` found at ``level`` translates."""
        return level == 1 or entry & self.kind_mask == self.leaf_kind

    def readable(self, entry: int) -> bool:
        return bool(entry & self.read)

    def writable(self, entry: int) -> bool:
        return bool(entry & self.write)

    def at_level(self, entry: int, old: int, new: int) -> int:
        """A leaf of level ``old`` rewritten as the leaf of level ``new`` for the same first frame."""
        return entry & ~self.leaf_bits[old] | self.leaf_bits[new]
