# SPDX-License-Identifier: GPL-2.0-or-later
"""A test bed whose hardware domain makes hypercalls by hand: the ABI's structs in guest memory, registers ready."""

from typing import Any, Final

from abi.canonical import CANONICAL
from testbed.build import NIC, build
from testbed.config import Config

READ_WRITE: Final = 3
CONTIGUOUS_PFN: Final = 512
"""First of the guest's pages that are aligned and contiguous in machine memory as far as a superpage goes."""


class Bed:
    """PV-IOMMU set up, context 1 made, the network card in it."""

    def __init__(self, **config: Any) -> None:
        self.testbed: Final = build(Config(**config))
        self.xen: Final = self.testbed.xen
        self.abi: Final = self.xen.abi
        self.vcpu: Final = self.testbed.vcpu
        self.set_up()

    def set_up(self) -> None:
        """The contexts, and who is in them."""
        if self.abi.has("init"):
            self.call("init", max_ctx_no=16, arena_order=9)
        self.call("alloc_context")
        self.call("reattach_device", ctx_no=1, segment=0, bus=NIC >> 8, devfn=NIC & 0xFF)

    def gfn(self, pfn: int) -> int:
        return self.testbed.ram.pfn_to_gfn(pfn)

    def put(self, address: int, name: str, **fields: int) -> tuple[int, ...]:
        """Write the struct of sub-op ``name`` at guest address ``address``; the hypercall's arguments for it."""
        codec = self.abi.by_name[name].codec
        assert codec is not None
        values = {field.name: field.default for field in CANONICAL[name]} | fields
        self.testbed.ram.write(address, codec.encode(*values.values()))
        return self.abi.registers(name, self.testbed.ram.linear(address))

    def call(self, name: str, **fields: int) -> None:
        """One hypercall that has to succeed."""
        result = self.xen.hypercall(self.vcpu, self.abi.hypercall, *self.put(0x4000, name, **fields))
        if result:
            raise RuntimeError(f"{name} {fields}: {result}")

    def map(self, pfn: int, dfn: int, pages: int = 1) -> None:
        self.call("map_pages", ctx_no=1, gfn=self.gfn(pfn), dfn=dfn, nr_pages=pages, flags=READ_WRITE)
