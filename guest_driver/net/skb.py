# SPDX-License-Identifier: GPL-2.0-or-later
"""A frame in guest memory (struct sk_buff with page fragments): its bytes lie in pieces all over the guest's pages."""

from __future__ import annotations

from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.page_alloc import GFP_ATOMIC

FRAGMENT_BYTES = 512
"""Longest piece that :func:`build_skb` makes."""


class Skb:
    """``frags``: (pfn, offset, length) in order; no piece crosses a page."""

    __slots__ = ("frags", "kernel")

    def __init__(self, kernel: Kernel, frags: list[tuple[int, int, int]]) -> None:
        self.kernel = kernel
        self.frags = frags

    def __len__(self) -> int:
        return sum(length for _, _, length in self.frags)

    def data(self) -> bytes:
        """The frame as the CPU sees it."""
        read = self.kernel.ram.read
        return b"".join(read((pfn << PAGE_SHIFT) + offset, length) for pfn, offset, length in self.frags)

    def free(self) -> None:
        """Give the pages back."""
        for pfn, _, _ in self.frags:
            self.kernel.pages.free_pages(pfn)
        self.frags = []


def build_skb(
    kernel: Kernel, frame: bytes, head: int, fragment_bytes: int = FRAGMENT_BYTES, max_frags: int = 16
) -> Skb | None:
    """``frame`` in guest memory: ``head`` bytes in a page, the rest in pieces in pages of their own; ``None`` if
    memory is short.

    Each piece starts at another offset of its page, so that no two descriptors look alike, and pieces grow beyond
    ``fragment_bytes`` where ``max_frags`` would not suffice.
    """
    body = max(len(frame) - head, 0)
    piece = max(fragment_bytes, -(-body // max(max_frags - 1, 1)))
    sizes = [min(head, len(frame))]
    while body > 0:
        sizes.append(min(piece, body))
        body -= sizes[-1]
    frags: list[tuple[int, int, int]] = []
    skb = Skb(kernel, frags)
    position = 0
    for number, size in enumerate(size for size in sizes if size):
        pfn = kernel.pages.alloc_pages(GFP_ATOMIC) if size <= PAGE_SIZE else 0
        if not pfn:
            skb.free()
            return None
        offset = min(PAGE_SIZE - size, (number * 650 + 2) % PAGE_SIZE)
        kernel.ram.write((pfn << PAGE_SHIFT) + offset, frame[position : position + size])
        frags.append((pfn, offset, size))
        position += size
    return skb
