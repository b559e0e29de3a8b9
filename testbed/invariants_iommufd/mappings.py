# SPDX-License-Identifier: GPL-2.0-or-later
"""Invariants 53 to 61: what the tables show, what is pinned, and the address space's own rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from abi.errno import EEXIST, EFAULT, EINVAL, ENOENT, errno_name
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.iova_ranges import ULONG_MAX
from guest_driver.iommufd.pages import IoptPages
from guest_driver.linux.mock_domain import MockDomain
from testbed.invariants_iommufd.registry import invariant
from testbed.invariants_iommufd.watch import IoasView, Step, Watch


def _spaces(watch: Watch) -> list[Ioas]:
    return [obj for obj in watch.ctx.objects if isinstance(obj, Ioas)]


@invariant(53, "every table of an address space translates every area alike, and nothing else")
def tables_agree(watch: Watch, step: Step) -> Iterator[str]:
    page = watch.mock.page
    for ioas in _spaces(watch):
        wanted = {}
        for area in ioas.iopt.areas.values():
            for offset in range(0, area.length, page):
                at = area.offset + offset
                paddr = area.pages.paddrs.get(at >> PAGE_SHIFT)
                if ioas.hwpt_list:
                    wanted[area.iova + offset] = None if paddr is None else paddr + (at & PAGE_SIZE - 1)
        for hwpt in ioas.hwpt_list:
            domain = hwpt.domain
            if isinstance(domain, MockDomain) and {at: entry[0] for at, entry in domain.table.items()} != wanted:
                yield f"table {hwpt.id} does not show address space {ioas.id}"


@invariant(54, "a page is pinned once for all tables and copies, as long as anything uses it and no longer")
def pins_are_uses(watch: Watch, step: Step) -> Iterator[str]:
    wanted: Counter[int] = Counter()
    seen: list[IoptPages] = []
    for ioas in _spaces(watch):
        for area in ioas.iopt.areas.values():
            if not any(pages is area.pages for pages in seen):
                seen.append(area.pages)
    for pages in seen:
        uses: Counter[int] = Counter()
        for ioas in _spaces(watch):
            for area in ioas.iopt.areas.values():
                first, last = area.indices(area.iova, area.last)
                if area.pages is pages:
                    for index in range(first, last + 1):
                        uses[index] += len(area.runs)
        if watch.access is not None:
            for taken in watch.access.pins.values():
                for area, first, last in taken:
                    if area.pages is pages:
                        uses.update(range(first, last + 1))
        if {index: count for index, count in uses.items() if count} != pages.uses:
            yield "the uses of some pages are counted wrong"
        wanted.update(pages.paddrs[index] >> PAGE_SHIFT for index in pages.uses if index in pages.paddrs)
    if dict(wanted) != step.after.pins:
        yield f"{sum(step.after.pins.values())} pins, {sum(wanted.values())} expected"


@invariant(55, "a driver is asked to unmap whole pieces, as it was asked to map them")
def unmaps_are_whole(watch: Watch, step: Step) -> Iterator[str]:
    mapped: dict[object, list[tuple[int, int]]] = {}
    calls: list[tuple[Any, ...]] = watch.mock.calls
    for op in calls:
        if op[0] == "map":
            mapped.setdefault(op[1], []).append((op[2], op[2] + op[4] * op[5]))
    gone: dict[object, set[int]] = {}
    for op in step.ops:
        if op[0] == "unmap":
            gone.setdefault(op[1], set()).update(range(op[2], op[2] + op[3] * op[4], watch.mock.page))
    for domain, pages in gone.items():
        edges = {edge for run in mapped.get(domain, []) for edge in run}
        for at in pages:
            if at - watch.mock.page not in pages and at not in edges:
                yield f"an unmap starts at {at:#x}, inside a piece"
            if at + watch.mock.page not in pages and at + watch.mock.page not in edges:
                yield f"an unmap ends at {at + watch.mock.page:#x}, inside a piece"


@invariant(56, "unmap removes whole areas or refuses, and says how many bytes; everything may be nothing")
def unmap_takes_whole_areas(watch: Watch, step: Step) -> Iterator[str]:
    if step.name != "IOAS_UNMAP" or step.args.get("ioas_id") not in step.before.ioases:
        return
    number, iova, length = step.args["ioas_id"], step.args["iova"], step.args["length"]
    everything = (iova, length) == (0, ULONG_MAX)
    last = ULONG_MAX if everything else iova + length - 1
    if not length or last > ULONG_MAX or (not everything and ULONG_MAX in (iova, length)):
        return
    before, after = step.before.ioases[number].areas, step.after.ioases[number].areas
    hit = {at: area for at, area in before.items() if at <= last and iova < at + area[0]}
    partial = any(at < iova or at + area[0] - 1 > last for at, area in hit.items())
    removed = sum(area[0] for at, area in before.items() if at not in after)
    if not step.failed:
        if partial or step.out["length"] != removed or hit.keys() & after.keys() or (not hit and not everything):
            yield f"it says {step.out['length']:#x} bytes, {removed:#x} are gone, {len(hit)} areas were in the range"
    elif (partial or not hit) and step.result != -ENOENT:
        yield f"{'part of an area' if partial else 'nothing'} answers {errno_name(step.result)}"
    if any(at not in after for at in before if at not in hit):
        yield "an area outside of the range is gone"


@invariant(57, "map and copy happen wholly or not at all, and never over something")
def map_is_all_or_nothing(watch: Watch, step: Step) -> Iterator[str]:
    if step.name not in ("IOAS_MAP", "IOAS_COPY", "IOAS_MAP_FILE"):
        return
    if step.failed:
        if (step.before.ioases, step.before.pins, step.before.charged) != (
            step.after.ioases,
            step.after.pins,
            step.after.charged,
        ):
            yield f"it failed ({errno_name(step.result)}) and left something"
        return
    field = "dst_iova" if step.name == "IOAS_COPY" else "iova"
    number = step.args["dst_ioas_id" if step.name == "IOAS_COPY" else "ioas_id"]
    first, last = step.out[field], step.out[field] + step.args["length"] - 1
    before = step.before.ioases[number]
    if _overlaps(before, first, last):
        yield f"{first:#x} was in use ({errno_name(EEXIST)})"
    if any(start <= last and first <= end for start, end, _ in before.reserved):
        yield f"{first:#x} is reserved ({errno_name(EINVAL)})"
    va = step.args.get("user_va")
    if va is not None and step.after.ioases[number].hwpts and watch.mm.read(va, step.args["length"]) is None:
        yield f"there is no memory at {va:#x} ({errno_name(EFAULT)})"


def _overlaps(ioas: IoasView, first: int, last: int) -> bool:
    return any(at <= last and first < at + area[0] for at, area in ioas.areas.items())


@invariant(58, "IOVA_RANGES is what is not reserved")
def ranges_are_the_rest(watch: Watch, step: Step) -> Iterator[str]:
    if step.name != "IOAS_IOVA_RANGES" or step.failed:
        return
    raw = watch.mm.read(step.args["allowed_iovas"], 16 * step.out["num_iovas"]) or b""
    words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
    said = list(zip(words[::2], words[1::2]))
    reserved = step.after.ioases[step.args["ioas_id"]].reserved
    edges = {0, ULONG_MAX}
    for first, last, _ in reserved:
        edges |= {first, last, max(first - 1, 0), min(last + 1, ULONG_MAX)}
    for edge in edges:
        free = not any(first <= edge <= last for first, last, _ in reserved)
        if free != any(first <= edge <= last for first, last in said):
            yield f"{edge:#x} is {'free and missing' if free else 'reserved and offered'}"


@invariant(59, "a list of allowed ranges replaces the old one or changes nothing, and never meets a reserved one")
def allowed_is_atomic(watch: Watch, step: Step) -> Iterator[str]:
    for number, ioas in step.after.ioases.items():
        for start, end in ioas.allowed:
            if any(first <= end and start <= last for first, last, _ in ioas.reserved):
                yield f"address space {number} promises {start:#x}, which is reserved"
        was = step.before.ioases.get(number)
        asked = step.name == "IOAS_ALLOW_IOVAS" and step.args.get("ioas_id") == number and not step.failed
        if was is not None and was.allowed != ioas.allowed and not asked:
            yield f"the promises of address space {number} have changed"
        if any(end >= start for (_, end), (start, _) in pairwise(ioas.allowed)):
            yield f"the promises of address space {number} overlap"


@invariant(61, "the alignment is the largest of the tables' smallest pages and what accesses and switches ask for")
def alignment_is_the_largest(watch: Watch, step: Step) -> Iterator[str]:
    for ioas in _spaces(watch):
        wanted = [domain.pgsize_bitmap & -domain.pgsize_bitmap for domain in ioas.iopt.domains]
        pinning = watch.access is not None and watch.access.ioas is ioas
        if ioas.iopt.disable_large_pages or pinning:
            wanted.append(PAGE_SIZE)
        if ioas.iopt.iova_alignment != max(wanted, default=1):
            yield f"address space {ioas.id} has {ioas.iopt.iova_alignment}, not {max(wanted, default=1)}"
        if any(area.misaligned(ioas.iopt.iova_alignment) for area in ioas.iopt.areas.values()):
            yield f"an area of address space {ioas.id} is not aligned to it"
