# SPDX-License-Identifier: GPL-2.0-or-later
"""A scatter-gather list element (include/linux/scatterlist.h)."""


class Scatterlist:
    """``length`` bytes at guest physical ``paddr``; after mapping, ``dma_length`` bytes at ``dma_address``.

    After dma_map_sg the dma fields of element i describe the i-th *coalesced* segment, which need not be the memory
    of element i.
    """

    __slots__ = ("dma_address", "dma_bus_address", "dma_length", "length", "paddr")

    def __init__(self, paddr: int, length: int) -> None:
        self.paddr = paddr
        self.length = length
        self.dma_address = 0
        self.dma_length = 0
        self.dma_bus_address = False
        """The element is peer memory whose bus address is already final: it is not mapped."""

    def __repr__(self) -> str:
        return f"<sg {self.paddr:#x}+{self.length:#x} dma {self.dma_address:#x}+{self.dma_length:#x}>"
