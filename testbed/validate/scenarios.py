# SPDX-License-Identifier: GPL-2.0-or-later
"""What is tried: a driver's life in areas, each a set of short programs.

Programs are systematic, not random: every size and alignment, every position at which a call can fail, every resource
that can run out.  Each begins on a machine that has just been switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from abi.errno import EBUSY, EINVAL, EIO, ENODEV, ENOMEM, ENOSPC, EPERM
from testbed.validate.program import Program, call
from testbed.validate.world import RMRR, World

BASE: Final = 0x4000_0000
"""An IOVA aligned to 1 GiB."""
TWO_MIB: Final = 512


@dataclass(frozen=True, slots=True)
class Traits:
    """What programs may depend on."""

    pv: bool
    superpages: bool
    """The ABI names page sizes."""
    has_init: bool
    limit: int
    """Pages per call."""

    @classmethod
    def of(cls, world: World) -> Traits:
        """Those of a world's guest and hypervisor."""
        abi = world.testbed.xen.abi
        return cls(
            pv=world.guest_kind == "pv",
            superpages=world.testbed.xen.profile.superpage_units,
            has_init=abi.has("init"),
            limit=abi.max_nr_pages or 1 << 32,
        )


@dataclass(frozen=True, slots=True)
class Area:
    """One part of a driver's life."""

    name: str
    title: str
    programs: Callable[[Traits], Iterator[Program]]
    rmrr: bool = False


_START: Final = (call("boot"), call("alloc", 0, "copier"), call("attach", 0, "copier"))


def _boot(traits: Traits) -> Iterator[Program]:
    yield call("boot", expect=0, why="the driver does not start"), call("shutdown")
    yield call("boot", "passthrough", expect=0, why="the driver does not start with passthrough"), call("shutdown")
    yield (
        call("fail", "query_capabilities", -EPERM),
        call("boot", expect=-ENODEV, why="a hypervisor that refuses is not absent"),
    )
    yield call("no-contexts"), call("boot", expect=(-95,), why="a hypervisor without contexts is not usable")
    if traits.has_init:
        yield (
            call("fail", "init", -ENOMEM),
            call("boot", expect=0, why="an arena that is too large is the end, although a smaller one is to be had"),
            call("shutdown"),
        )
    for skip in range(3):
        yield call("fail", "reattach_device", -EIO, 0, skip), call("boot")
        yield call("fail", "alloc_context", -ENOMEM, 0, skip), call("boot")


def _probe(traits: Traits) -> Iterator[Program]:
    yield call("boot"), call("regions", "copier"), call("coherent", "copier")
    yield call("no-cache-cap"), call("boot"), call("coherent", "copier", expect=0)
    yield (call("no-cache-cap"), *_START, call("map", 0, BASE, "near", 1, "rwc"))
    yield call("boot"), call("regions", "rogue"), call("dma-map", 0, "nic", 4096), call("dma-unmap", 0)


def _domains(traits: Traits) -> Iterator[Program]:
    yield (*_START, call("detach", 0, "copier"), call("free", 0), call("shutdown"))
    yield (*_START, call("alloc", 1, "rogue"), call("attach", 1, "copier", expect=-EBUSY), call("shutdown"))
    yield call("boot"), call("no-memory"), call("alloc", 0, "copier", expect=-ENOMEM), call("shutdown")
    for errno in (-EIO, -ENOMEM, -ENODEV):
        yield (*_START[:2], call("fail", "reattach_device", errno), call("attach", 0, "copier"), call("shutdown"))
    yield (*_START[:2], call("fail", "free_context", -EBUSY), call("free", 0), call("shutdown"))
    yield (
        *_START[:2],
        call("fail", "free_context", -EBUSY),
        call("free", 0),
        call("alloc", 1, "copier"),
        call("free", 1),
        call("shutdown"),
    )
    yield call("one-group"), *_START, call("attach-device", 0, "rogue", expect=-EINVAL)
    yield (
        call("one-group"),
        *_START[:2],
        call("fail", "reattach_device", -EIO, 0, 1),
        call("attach", 0, "copier", expect=-EIO),
    )
    yield (*_START, call("pasid", 0, "copier", 1), call("shutdown"))
    yield from _pasids()


def _pasids() -> Iterator[Program]:
    """On a driver that has PASIDs, in a group of two."""
    start = (call("one-group"), call("pasid-driver"), *_START[:2], call("alloc", 1, "rogue"))
    attach = call("pasid", 0, "copier", 5, expect=0)
    detach = call("pasid-detach", 0, "copier", 5)
    yield (*start, attach, call("pasid", 1, "rogue", 5, expect=-EBUSY), detach, call("shutdown"))
    yield (*start, attach, call("pasid-replace", 1, "copier", 5, expect=0), call("pasid-detach", 1, "copier", 5))
    yield (*start, call("pasid-replace", 1, "copier", 5, expect=-EINVAL))
    for pasid in (0, 64):
        yield (*start, call("pasid", 0, "copier", pasid, expect=-EINVAL))
    for position in (0, 1):
        fail = call("pasid-fail", position)
        yield (*start, fail, call("pasid", 0, "copier", 5, expect=-EIO), attach, detach)
        yield (*start, attach, fail, call("pasid-replace", 1, "rogue", 5, expect=-EIO), detach)


def _mapping(traits: Traits) -> Iterator[Program]:
    sizes = [1, 2, 3, 7, 8, 16, 64, 255, 256, 257]
    for pages in sizes:
        for shift in (0, 1, 511):
            iova = BASE + shift * 4096
            for frames in ("near", "near+1", *(("far",) if traits.pv and pages < 64 else ())):
                whole = call("unmap", 0, iova, pages, expect=pages * 4096, why="what was mapped is not all unmapped")
                yield (
                    *_START,
                    call("map", 0, iova, frames, pages, expect=0, why="the map failed"),
                    call("touch", "copier", iova, min(pages, 16)),
                    whole,
                )
    for pages in (512, 513, 600, 1024):
        for shift in (0, 511):
            iova = BASE + shift * 4096
            yield (
                *_START,
                call("map", 0, iova, "near", pages, expect=0, why="the map failed"),
                call("touch", "copier", iova, 16),
                call("unmap", 0, iova, pages, expect=pages * 4096, why="what was mapped is not all unmapped"),
            )
    for prot in ("r", "w", "rw", "rwc"):
        yield (
            *_START,
            call("map", 0, BASE, "near", 3, prot, expect=0, why="the map failed"),
            call("unmap", 0, BASE, 3),
        )
    yield (*_START, call("map", 0, BASE, "near", 1, "none", expect=-EINVAL, why="a mapping without rights"))
    for paddr, size in ((0x1000, 0x800), (0x1800, 0x1000)):
        yield (*_START, call("map-bytes", 0, BASE, paddr, size, expect=-EINVAL))
    yield (*_START, call("map-bytes", 0, BASE + 0x10, 0x1000, 0x1000, expect=-EINVAL))
    yield (*_START, call("map-bytes", 0, (1 << 64) - 0x2000, 0x1000, 0x1000, expect=-EINVAL))
    yield (*_START, call("map-sg", 0, BASE, "0:1", "5:2", "7:1", "3:2"), call("unmap", 0, BASE, 6, expect=6 * 4096))
    for at in (0, 1, 3):
        yield (
            *_START,
            call("map", 0, BASE + at * 4096, "near+9", 1),
            call("map", 0, BASE, "near", 4, expect=(-EINVAL, -98), why="mapped over an existing entry"),
            call("unmap", 0, BASE + at * 4096, 1, expect=4096, why="the older mapping is gone"),
        )


def _holes(traits: Traits) -> Iterator[Program]:
    for mapped, asked in ((1, 2), (2, 8), (3, 4)):
        yield (
            *_START,
            call("map", 0, BASE, "near", mapped),
            call("unmap", 0, BASE, asked, expect=mapped * 4096, why="a short unmap is not reported"),
        )
    yield (*_START, call("unmap", 0, BASE, 4, expect=0, why="something was unmapped where nothing is"))
    for at in (0, 100, 511):
        yield (
            *_START,
            call("map", 0, BASE, "near", TWO_MIB),
            call("unmap", 0, BASE + at * 4096, 1),
            call("phys", 0, BASE + (at ^ 1) * 4096),
            call("unmap", 0, BASE, TWO_MIB),
        )


def _partial(traits: Traits) -> Iterator[Program]:
    for pages in (1, 2, 4, 8):
        for k in range(pages):
            for errno in (-ENOMEM,) if k else (-ENOMEM, -EINVAL):
                for frames in ("near", *(("far",) if traits.pv else ())):
                    yield (
                        *_START,
                        call("fail", "map_pages", errno, k),
                        call("map", 0, BASE, frames, pages, expect=errno, why="the error is lost"),
                    )
                yield (
                    *_START,
                    call("map", 0, BASE, "near", pages),
                    call("fail", "unmap_pages", errno, k, 0, 9),
                    call("unmap", 0, BASE, pages, expect=k * 4096, why="a partial unmap is not reported"),
                )
    for k in (0, 1, traits.limit - 1, traits.limit, traits.limit + 1):
        if k < 300:
            yield (*_START, call("fail", "map_pages", -ENOMEM, k), call("map", 0, BASE, "near", 300))
    for k in range(3):
        yield (
            *_START,
            call("map", 0, BASE, "near", 1),
            call("fail", "map_pages", -ENOMEM, k),
            call("map-sg", 0, BASE + 0x10000, "0:1", "5:1", "9:1", expect=-ENOMEM),
        )


def _exhaustion(traits: Traits) -> Iterator[Program]:
    yield (
        call("boot"),
        call("fill", "copier"),
        call("claim", "copier", expect=0, why="blocking a device needs a context, and there is none left"),
        call("release", "copier"),
    )
    yield call("boot"), call("fail", "alloc_context", -ENOSPC), call("alloc", 0, "copier", expect=-ENOSPC)
    yield call("boot"), call("fill", "copier"), call("unplug", "rogue"), call("plug", "rogue")
    yield (
        *_START,
        call("map", 0, BASE, "near", 4),
        call("no-arena"),
        call("map", 0, BASE << 2, "near", 2, expect=-ENOMEM, why="that the arena is used up is not said"),
        call("unmap", 0, BASE, 4, expect=4 * 4096, why="what was mapped is not all unmapped"),
        call("map", 0, BASE, "near", 2, expect=0, why="what the unmap gave back is not there"),
    )
    yield (
        call("boot"),
        call("no-arena"),
        call("alloc", 0, "copier", expect=-ENOMEM, why="a context without a table is handed out"),
    )
    yield (
        call("boot"),
        call("fail", "alloc_context", -ENOMEM, 0, 0, 9),
        call("claim", "copier", expect=0, why="blocking a device needs a context"),
    )


def _hotplug(traits: Traits) -> Iterator[Program]:
    yield call("boot"), call("unplug", "copier"), call("plug", "copier"), call("shutdown")
    yield call("boot"), call("dma-map", 0, "rogue", 4096), call("dma-unmap", 0), call("unplug", "rogue")
    yield call("boot"), call("bind", "copier"), call("unplug", "copier", expect=-EBUSY)
    yield call("boot"), call("unplug", "copier"), call("fail", "reattach_device", -EIO), call("plug", "copier")
    yield call("boot"), call("unplug", "copier"), call("fail", "alloc_context", -ENOSPC), call("plug", "copier")
    yield call("one-group"), call("boot"), call("unplug", "copier"), call("plug", "copier"), call("shutdown")


def _ownership(traits: Traits) -> Iterator[Program]:
    yield call("boot"), call("claim", "copier", expect=0), call("release", "copier"), call("shutdown")
    yield call("boot"), call("bind", "copier"), call("claim", "copier", expect=-EPERM), call("unbind", "copier")
    yield call("boot"), call("claim", "copier"), call("bind", "copier", expect=-EBUSY), call("release", "copier")
    yield call("boot"), call("claim", "copier"), call("claim", "copier", "another", expect=-EPERM)
    yield (
        call("boot"),
        call("claim", "copier"),
        call("alloc", 0, "copier"),
        call("attach", 0, "copier", expect=0),
        call("map", 0, BASE, "near", 2),
        call("detach", 0, "copier"),
        call("release", "copier"),
    )
    yield call("boot"), call("fail", "reattach_device", -EIO), call("claim", "copier")
    yield (
        call("one-group"),
        call("boot"),
        call("bind", "copier"),
        call("claim", "rogue", expect=-EPERM, why="a group was claimed while a driver is bound to its other device"),
    )
    yield call("boot"), call("type", "copier", "identity"), call("type", "copier", "DMA"), call("shutdown")
    yield call("boot"), call("bind", "copier"), call("type", "copier", "identity", expect=-EPERM)


def _dma(traits: Traits) -> Iterator[Program]:
    for size in (1, 4096, 4097, 65536, 131072, 200000):
        yield call("boot"), call("dma-map", 0, "nic", size, expect=0, why="no DMA address"), call("dma-unmap", 0)
    for k in range(3):
        yield (
            call("boot"),
            call("fail", "map_pages", -ENOMEM, k),
            call("dma-map", 0, "nic", 12288),
            call("dma-map", 1, "nic", 12288),
            call("dma-unmap", 1),
        )
    yield call("boot"), call("dma-sg", 0, "nic", "0+0:4096", "1+0:4096", "3+100:50"), call("dma-unsg", 0)
    yield call("boot"), call("dma-sg", 0, "nic", "0+0:40960", "20+0:40960", "40+0:512"), call("dma-unsg", 0)


def _rmrr(traits: Traits) -> Iterator[Program]:
    yield call("boot", expect=0), call("regions", "copier"), call("dma-map", 0, "copier", 4096), call("dma-unmap", 0)
    yield (*_START, call("map", 0, RMRR.base - 0x2000, "near", 4), call("phys", 0, RMRR.base))
    yield (*_START, call("map", 0, RMRR.base, "near", 1), call("unmap", 0, RMRR.base, 4, expect=0))
    yield (
        *_START,
        call("map", 0, RMRR.base - 0x2000, "near", 2),
        call("unmap", 0, RMRR.base - 0x2000, 4, expect=0x2000, why="a partial unmap is not reported"),
    )


def _release(traits: Traits) -> Iterator[Program]:
    yield (*_START, call("map", 0, BASE, "near", 5), call("detach", 0, "copier"), call("shutdown"))
    yield call("boot"), call("unplug", "copier"), call("unplug", "rogue"), call("unplug", "nic"), call("shutdown")
    yield (
        call("boot"),
        call("claim", "copier"),
        call("release", "copier"),
        call("unplug", "copier"),
        call("shutdown"),
    )


AREAS: Final = (
    Area("boot", "start: capabilities, refusals, failures on the way", _boot),
    Area("probe", "probe: capabilities of devices, reserved regions", _probe),
    Area("domains", "domains: allocation, attach, free, and their failures", _domains),
    Area("mapping", "map and unmap of every size and alignment", _mapping),
    Area("holes", "unmap of holes and of slices of superpages", _holes),
    Area("partial", "map and unmap that fail at every position", _partial),
    Area("exhaustion", "contexts and arena run out", _exhaustion),
    Area("hotplug", "devices leave and come back", _hotplug),
    Area("ownership", "DMA ownership changes hands", _ownership),
    Area("dma", "the DMA API", _dma),
    Area("rmrr", "firmware's reserved regions", _rmrr, rmrr=True),
    Area("release", "everything is given back", _release),
)
