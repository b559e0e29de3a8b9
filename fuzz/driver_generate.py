# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of driver level: what device drivers, VFIO-like owners and an administrator ask of a guest's IOMMU code.

As with hypercalls: what exists is used again, each program has its own weights, runs are contiguous and aligned often
enough to become superpages, and a hypercall in the middle of it all fails.
"""

import random
from collections.abc import Callable
from typing import Final

from abi.errno import EBUSY, EINVAL, EIO, ENODEV, ENOMEM, ENOSPC, EPERM
from abi.versions import Abi
from fuzz.program import Bench
from fuzz.verbs import Op

BASE: Final = 0x4000_0000
"""An IOVA aligned to 1 GiB."""
_PAGE: Final = 4096
_DEVICES: Final = ("copier", "copier", "rogue", "nic")
_PAGES: Final = (1, 1, 1, 2, 3, 4, 7, 8, 16, 64, 255, 256, 257, 511, 512, 512, 513, 600, 1024)
_BYTES: Final = (1, 64, 4095, 4096, 4097, 8192, 12288, 65536, 131072, 200_000)
_ERRNOS: Final = {
    "query_capabilities": (EPERM, ENODEV),
    "init": (ENOMEM, EINVAL),
    "alloc_context": (ENOMEM, ENOSPC),
    "free_context": (EBUSY, EIO),
    "reattach_device": (EIO, ENOMEM, ENODEV),
    "map_pages": (ENOMEM, EIO, EINVAL),
    "unmap_pages": (ENOMEM, EIO),
}
_REFUSED_FREE: Final[Op] = ("fail_call", "free_context", -EBUSY, 0, 0, 1)
_WEIGHTS: Final = {
    "map": 10,
    "unmap": 8,
    "again": 4,
    "phys": 1,
    "sg": 2,
    "bytes": 0.5,
    "alloc": 3,
    "attach": 3,
    "detach": 1.5,
    "free": 1.5,
    "dma": 5,
    "dma_map": 4,
    "dma_unmap": 3,
    "dma_sg": 2,
    "coherent": 1.5,
    "claim": 1,
    "release": 1,
    "bind": 0.7,
    "unbind": 0.7,
    "unplug": 0.6,
    "plug": 1,
    "type": 0.6,
    "pasid": 0.3,
    "regions": 0.3,
    "fail": 3.5,
    "fill": 0.15,
}
_OPTIONAL: Final = tuple(name for name in _WEIGHTS if name not in ("map", "unmap", "alloc", "attach"))
_ALLOCATING: Final = ("alloc", "alloc", "type", "claim", "plug", "attach", "map", "dma_map")


class DriverGenerator:
    """Programs for one bench; equal seeds give equal programs."""

    def __init__(self, bench: Bench, abi: Abi, seed: int) -> None:
        self._pv: Final = bench.guest == "pv"
        self._at_boot: Final = tuple(
            (name, errno)
            for name in ("query_capabilities", "init", "alloc_context", "reattach_device")
            if abi.has(name)
            for errno in _ERRNOS[name]
        )
        self._calls: Final = tuple(name for name in _ERRNOS if abi.has(name))
        self._rng: Final = random.Random(seed)
        self._make: Final[dict[str, Callable[[], Op]]] = {
            "map": self._map,
            "unmap": self._unmap,
            "again": self._again,
            "phys": lambda: ("iova_to_phys", self._domain(), self._somewhere()),
            "sg": self._map_sg,
            "bytes": self._map_bytes,
            "alloc": self._alloc,
            "attach": lambda: ("domain_attach", self._domain(), self._device()),
            "detach": lambda: ("domain_detach", self._domain(), self._device()),
            "free": self._free,
            "dma": self._dma,
            "dma_map": self._dma_map,
            "dma_unmap": lambda: ("dma_unmap_page", self._slot("page")),
            "dma_sg": self._dma_sg,
            "coherent": self._coherent,
            "claim": lambda: ("claim_dma_owner", self._device()),
            "release": lambda: ("release_dma_owner", self._device()),
            "bind": lambda: ("bind_driver", self._device()),
            "unbind": lambda: ("unbind_driver", self._device()),
            "unplug": lambda: ("unplug", self._device()),
            "plug": lambda: ("plug", self._device()),
            "type": lambda: ("group_type", self._device(), self._rng.choice(("DMA", "DMA-FQ", "identity", "auto"))),
            "pasid": lambda: ("attach_pasid", self._domain(), self._device(), self._rng.choice((0, 1, 7))),
            "regions": lambda: ("get_resv_regions", self._device()),
            "fail": self._fail,
            "fill": lambda: ("domain_fill", self._device()),
        }
        self._domains: list[int] = []
        self._next = 0
        self._mapped: list[tuple[int, int, int]] = []
        """(domain, iova, pages), newest last."""
        self._fresh = 0
        """Places that were chosen because nothing is there."""
        self._slots = 0
        self._live: dict[str, list[int]] = {}
        """By kind of DMA API mapping: the slots that have been mapped and not unmapped."""

    def program(self, length: int) -> tuple[Op, ...]:
        """A boot, and operations after it; an eighth of ``length``, for they are larger than hypercalls."""
        rng = self._rng
        self._domains, self._mapped, self._next, self._slots, self._fresh = [], [], 0, 0, 0
        self._live = {"page": [], "list": [], "buffer": []}
        dropped = {name for name in _OPTIONAL if rng.random() < 0.4}
        names = [name for name in _WEIGHTS if name not in dropped]
        weights = [_WEIGHTS[name] * rng.choice((0.3, 1, 1, 3)) for name in names]
        ops, lengths = self._boot(length)
        ops.append(self._alloc())
        ops.append(("domain_attach", 0, "copier" if rng.random() < 0.8 else "rogue"))
        makers = [self._make[name] for name in names]
        for maker in rng.choices(makers, weights, k=rng.choice(lengths)):
            ops.append(maker())
            if ops[-1][0] == "domain_free" and rng.random() < 0.2:
                ops.insert(-1, _REFUSED_FREE)
            elif ops[-1][0] == "fail_call" and rng.random() < 0.8:
                ops.extend(self._hit(ops[-1][1]))
        if rng.random() < 0.12:
            ops.append(("no_memory",))
            ops.extend(self._make[name]() for name in rng.choices(_ALLOCATING, k=rng.choice((1, 2, 4))))
        if rng.random() < 0.5:
            if rng.random() < 0.3:
                ops.append(_REFUSED_FREE)
            ops.append(("shutdown",))
        return tuple(ops)

    def _boot(self, length: int) -> tuple[list[Op], tuple[int, ...]]:
        """The boot with what goes wrong in it, and how many operations are worth running after it."""
        rng = self._rng
        ops: list[Op] = []
        lengths: tuple[int, ...] = (2, length // 16, length // 8, length // 8)
        if rng.random() < 0.35:
            name, errno = rng.choice(self._at_boot)
            ops.append(("fail_call", name, -errno, 0, rng.choice((0, 0, 0, 0, 1, 2)), rng.choice((1, 1, 9))))
            lengths = (0, 0, *lengths[:2])
        hidden = rng.choice(("cache", "contexts")) if rng.random() < 0.08 else "nothing"
        if hidden == "contexts":
            lengths = (0,)
        shared = "shared" if rng.random() < 0.15 else "own"
        ops.append(("boot", "passthrough" if rng.random() < 0.2 else "dma", hidden, shared))
        return ops, lengths

    def _hit(self, call: str) -> list[Op]:
        """Operations that make the hypercall that is to fail, in several pieces where it can be."""
        if call == "map_pages":
            if self._rng.random() < 0.6:
                return [self._map_scattered()]
            return [self._make[self._rng.choice(("map", "map", "sg", "dma_map"))]()]
        if call == "unmap_pages":
            return [self._unmap()]
        return [self._alloc()] if call == "alloc_context" else []

    def _device(self) -> str:
        return self._rng.choice(_DEVICES)

    def _domain(self) -> int:
        if not self._domains or self._rng.random() < 0.02:
            return self._rng.randrange(4)
        return self._rng.choice(self._domains)

    def _slot(self, kind: str) -> int:
        """A slot to unmap: one that is mapped, if there is one."""
        live = self._live[kind]
        return live.pop(self._rng.randrange(len(live))) if live else self._slots

    def _somewhere(self) -> int:
        rng = self._rng
        if self._mapped and rng.random() < 0.7:
            _, iova, pages = rng.choice(self._mapped)
            return iova + rng.randrange(pages + 1) * _PAGE
        return BASE + rng.choice((0, 0, 0, 1, 2, 511, 512, 513, 1023, 1024)) * _PAGE

    def _frames(self, pages: int) -> str:
        rng = self._rng
        if self._pv and rng.random() < (0.3 if pages < 64 else 0.1):
            return "far"
        return "near" if rng.random() < 0.7 else f"near+{rng.choice((1, 2, 9, 511, 512))}"

    def _alloc(self) -> Op:
        number, self._next = self._next, self._next + 1
        self._domains.append(number)
        return ("domain_alloc", number, self._device())

    def _free(self) -> Op:
        domain = self._domain()
        if domain in self._domains and self._rng.random() < 0.8:
            self._domains.remove(domain)
        return ("domain_free", domain)

    def _map(self) -> Op:
        rng = self._rng
        pages, domain, iova = rng.choice(_PAGES), self._domain(), self._somewhere()
        if rng.random() < 0.05:
            return self._map_scattered()
        if pages >= 511 and rng.random() < 0.7:
            iova &= ~0x1F_FFFF
        if rng.random() < 0.1:  # two large pages in a row
            self._mapped.append((domain, BASE, 1024))
            return ("iommu_map", domain, BASE, rng.choice(("near", "near+512")), 1024, "rw")
        prot = rng.choice(("rw", "rw", "rw", "rw", "r", "w", "rwc", "none" if rng.random() < 0.2 else "rw"))
        self._mapped.append((domain, iova, pages))
        return ("iommu_map", domain, iova, self._frames(pages), pages, prot)

    def _map_scattered(self) -> Op:
        """A map where nothing is, in several hypercalls: from frames that are no neighbours, or in two page sizes."""
        rng = self._rng
        self._fresh += 1
        domain, iova = self._domain(), BASE + self._fresh * 0x80_0000
        pages = rng.choice((2, 3, 8, 64, 513, 600, 1024))
        self._mapped.append((domain, iova, pages))
        return ("iommu_map", domain, iova, "far" if self._pv else self._frames(pages), pages, "rw")

    def _again(self) -> Op:
        """Go on where the last mapping ended, or map it over."""
        if not self._mapped:
            return self._map()
        domain, iova, pages = self._mapped[-1]
        if self._rng.random() < 0.7:
            iova += pages * _PAGE
            pages = self._rng.choice(_PAGES)
        self._mapped.append((domain, iova, pages))
        return ("iommu_map", domain, iova, self._frames(pages), pages, "rw")

    def _unmap(self) -> Op:
        rng = self._rng
        if not self._mapped:
            return ("iommu_unmap", self._domain(), self._somewhere(), rng.choice(_PAGES))
        domain, iova, pages = self._mapped[rng.randrange(len(self._mapped))]
        draw = rng.random()
        if draw < 0.25:
            iova, pages = iova + rng.randrange(pages) * _PAGE, 1
        elif draw < 0.35:
            pages = rng.randrange(1, pages + 1)
        elif draw < 0.5:
            pages += rng.choice((1, 4))
        return ("iommu_unmap", domain, iova, pages)

    def _map_sg(self) -> Op:
        rng = self._rng
        pieces = ",".join(f"{rng.randrange(12)}:{rng.choice((1, 1, 2, 5))}" for _ in range(rng.randint(1, 4)))
        domain, iova = self._domain(), self._somewhere()
        self._mapped.append((domain, iova, sum(int(piece.partition(":")[2]) for piece in pieces.split(","))))
        return ("iommu_map_sg", domain, iova, pieces)

    def _map_bytes(self) -> Op:
        rng = self._rng
        iova = rng.choice((self._somewhere(), BASE + 0x10, (1 << 64) - 0x2000, (1 << 48) - 0x1000))
        paddr = rng.choice((0x1000, 0x1800, 0x1001, 0x20_0000))
        return ("iommu_map_bytes", self._domain(), iova, paddr, rng.choice((0, 0x800, 0x1000, 0x1001, 0x2000)))

    def _dma(self) -> Op:
        rng = self._rng
        if self._mapped and rng.random() < 0.9:
            _, iova, pages = rng.choice(self._mapped)
            return ("dma", self._device(), iova >> 12, pages)
        return ("dma", self._device(), self._somewhere() >> 12, 1)

    def _new_slot(self, kind: str) -> int:
        self._slots += 1
        self._live[kind].append(self._slots)
        return self._slots

    def _dma_map(self) -> Op:
        return ("dma_map_page", self._new_slot("page"), self._device(), self._rng.choice(_BYTES))

    def _dma_sg(self) -> Op:
        rng = self._rng
        if rng.random() < 0.4:
            return ("dma_unmap_sg", self._slot("list"))
        pieces = ",".join(
            f"{k * 20}+{rng.choice((0, 0, 0, 100))}:{rng.choice((50, 512, 4096, 40960))}"
            for k in range(rng.randint(1, 4))
        )
        return ("dma_map_sg", self._new_slot("list"), self._device(), pieces)

    def _coherent(self) -> Op:
        if self._rng.random() < 0.4:
            return ("dma_free_coherent", self._slot("buffer"))
        return ("dma_alloc_coherent", self._new_slot("buffer"), self._device(), self._rng.choice(_BYTES[2:]))

    def _fail(self) -> Op:
        rng = self._rng
        name = rng.choice(self._calls + ("map_pages", "unmap_pages") * 3)
        page = rng.choice((0, 0, 0, 1, 1, 2, 3, 255, 256)) if name.endswith("_pages") else 0
        return ("fail_call", name, -rng.choice(_ERRNOS[name]), page, rng.choice((0, 0, 1, 1, 2)), rng.choice((1, 1, 9)))
