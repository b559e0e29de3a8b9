# SPDX-License-Identifier: GPL-2.0-or-later
"""What has to be true after every operation of a program, kept as ranges: the quick reading of the fixed contracts.

:mod:`abi.semantics` is the specification, a page at a time; this says the same in ranges, so that watching a call costs
little.  Every method answers with the result
and the OUT fields that the call must have, and with what is done to the state if it has them.
"""

from collections.abc import Callable, Sequence
from typing import Final

from abi.errno import (
    E2BIG,
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EBUSY,
    EFAULT,
    EINVAL,
    EIO,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EOPNOTSUPP,
)
from abi.versions import Abi
from fuzz.guest_frames import Frames
from fuzz.intervals import Intervals
from fuzz.shadow_frames import FrameShadow

Args = tuple[int, ...]
MAX_PAGES: Final = 1 << 32
MAX_CONTEXTS: Final = 0xFFFE


class Shadow(FrameShadow):
    """The state of one domain's PV-IOMMU, and what calls do to it."""

    def __init__(
        self,
        abi: Abi,
        frames: Frames,
        limit: int,
        initialised: bool,
        devices: dict[int, tuple[tuple[int, int], ...]],
        max_iova: int,
        pgsize_mask: int,
        caps: int,
        errno_paged_out: int,
        arena_pages: int | None = None,
    ) -> None:
        super().__init__(frames, errno_paged_out)
        self.abi: Final = abi
        self.limit = limit
        self.initialised = initialised
        self.homes: dict[int, int] = {}
        """The domain's devices, and the context in which each is."""
        self.devices: Final = devices
        """Every device of the machine, with its reserved regions."""
        self.uncovered: frozenset[int] = frozenset()
        """Devices of the domain that no unit covers: they are in no context."""
        self.arena_pages: Final = arena_pages
        """Most pages that it may reserve; ``None``: as many as there are."""
        self.usable = True
        """Whether it may use PV-IOMMU."""
        self.scattered = 0
        """Pages of the context that was freed last that were no part of a superpage."""
        self.moved = False
        """Whether the last reattach took the device to another context."""
        self.progress = 0
        """What the call that is being judged says about earlier passes."""
        self.stopped = False
        """Whether a pass of that call, not the first, found that its struct could not be copied."""
        self.passes: Callable[[], Sequence[int]] = tuple
        """How far its preempted passes say that they got."""
        self.pauses: Callable[[], bool] = lambda: False
        """Whether it may be preempted."""
        self.unconfirmed: Callable[[], bool] = lambda: False
        """Whether a flush of it was not confirmed."""
        self.regions: dict[int, list[tuple[int, int]]] = {}
        """By context: the reserved regions of its devices."""
        self.stuck: Callable[[int, int], bool] = lambda device, number: False
        """Whether a device is still in that context: asked where a move may have gone wrong."""
        self.tagless: Callable[[], bool] = lambda: False
        """Whether hardware's last tag may be taken."""
        self.out_of_tags: Callable[[], bool] = lambda: False
        """Whether it is, for certain."""
        self.starved: Callable[[int], bool] = lambda pages: False
        """Whether a call that maps or splits so many pages may have run out of memory for tables."""
        self.no_block: Callable[[int], bool] = lambda order: False
        """Whether there may be no block of 2^order frames, or the call may not have got it."""
        self.free_before = 0
        """Pages of its arena that were free before the call that is being judged."""
        self.free_when_short = 0
        """Those that were when that call last found no memory."""
        self._max_iova: Final = max_iova
        self._max_dfn: Final = max_iova >> 12
        self._pgsize_mask: Final = pgsize_mask
        self._caps: Final = caps
        self.predict: Final[dict[str, Callable[[Args, int, Args], tuple[int, Args]]]] = {
            "noop": lambda args, result, out: (0, ()),
            "query_capabilities": self._query,
            "init": self._init,
            "alloc_context": self._alloc,
            "free_context": self._free,
            "reattach_device": self._reattach,
            "map_pages": self._map,
            "unmap_pages": self._unmap,
            "flush_pages": self._flush,
            "lookup_page": self._lookup,
        }
        """By sub-op: (fields, actual result, actual OUT fields) to what they must be.  Where the contract leaves
        something open (was there memory?) the answer follows the actual one as far as that is legal."""

    # ------------------------------------------------------------------------------------------ contexts, devices

    def _query(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        return 0, (self._max_iova, self._caps, self._pgsize_mask, 0, self.limit, self.abi.max_nr_pages or 0)

    def _init(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        contexts, order = args
        if contexts > MAX_CONTEXTS:
            return -E2BIG, ()
        if self.initialised:
            return -EACCES, ()
        most = self.frames.ram_frames if self.arena_pages is None else self.arena_pages
        if order >= self.frames.ram_frames.bit_length() or 1 << order > most:
            return -ENOMEM, ()
        if result == -ENOMEM and self.no_block(order):
            return -ENOMEM, ()
        self.initialised, self.limit = True, contexts
        return 0, ()

    def _alloc(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number_in, flags = args
        if flags & ~self.abi.alloc_flags_mask:
            return -EINVAL, (number_in,)
        if flags & self.abi.alloc_identity:
            return -EOPNOTSUPP, (number_in,)
        number = next((n for n in range(1, self.limit + 1) if n not in self.spaces), None)
        if number is None:
            return -ENOSPC, (number_in,)
        if result == -ENOMEM and self.starved(0):
            return -ENOMEM, (number_in,)
        if self.out_of_tags() or (result == -ENOSPC and self.tagless()):
            return -ENOSPC, (number_in,)
        self.spaces[number] = Intervals()
        self.regions[number] = []
        return 0, (number,)

    def _free(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number, flags = args
        if flags & ~self.abi.free_flags_mask or number == 0:
            return -EINVAL, ()
        if number not in self.spaces:
            return -ENOENT, ()
        inside = [device for device, home in self.homes.items() if home == number]
        if inside and not flags & self.abi.free_reattach_default:
            return -EBUSY, ()
        stays = [device for device in inside if self.stuck(device, number)] if result in (-EIO, -ENOMEM) else []
        for device in inside:
            self.homes[device] = 0 if device not in stays else number
        excused = self.unconfirmed() if result == -EIO else self.starved(1)
        if stays and excused:  # a move that hardware did not confirm, or that found no memory, ends the call
            self.regions[number] = sorted({region for device in stays for region in self.devices[device]})
            return result, ()
        if (result == -EIO and self.unconfirmed()) or self.stopped:
            self.dying.add(number)
            self.regions[number] = []
            return result, ()
        begun = number in self.dying  # how much of it an earlier call took away, nobody is told
        self.scattered = 0 if begun else sum(end - at for at, end, delta, _ in self.spaces[number] if delta & 511)
        del self.spaces[number], self.regions[number]
        self.dying.discard(number)
        return 0, ()

    def _reattach(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number, segment, bus, devfn, pasid = args
        self.moved = False
        device = segment << 16 | bus << 8 | devfn
        if pasid:
            return -EOPNOTSUPP, ()
        if device not in self.homes and device not in self.uncovered:
            return -ENODEV, ()
        if number and number not in self.spaces:
            return -ENOENT, ()
        if device in self.uncovered:
            return (-EINVAL if number in self.dying else -ENODEV), ()
        if self.homes[device] == number:  # there it is, or is put again, if it was cut off
            return (result if result == -EIO and self.unconfirmed() else 0), ()
        refused = self.refuses(device, number)
        if refused:
            return refused, ()
        if (result == -ENOMEM and self.starved(1)) or (result == -EIO and self.unconfirmed()):
            return result, ()
        self.moved = True
        self.enter(device, number)
        return 0, ()

    def refuses(self, device: int, number: int) -> int:
        """The errno with which a context that is there refuses a device, 0 if it does not."""
        if number in self.dying:
            return -EINVAL
        if number:
            there = self.regions[number]
            for first, last in self.devices[device]:
                if (first, last) in there:
                    continue
                if any(first <= other and start <= last for start, other in there):
                    return -EADDRINUSE
                pages = last - first + 1
                if self.spaces[number].first_mapped(first, pages) < pages:
                    return -EADDRINUSE
        return 0

    def enter(self, device: int, number: int) -> None:
        """A device is in context ``number`` of the domain from now on."""
        old, self.homes[device] = self.homes.get(device, 0), number
        for context in (old, number):
            self._count_regions(context)

    def leave(self, device: int) -> None:
        """A device is no longer the domain's."""
        self._count_regions(self.homes.pop(device))

    def _count_regions(self, number: int) -> None:
        """Which reserved regions the devices in a context need."""
        if number:
            self.regions[number] = sorted(
                {region for other, home in self.homes.items() if home == number for region in self.devices[other]}
            )

    # ---------------------------------------------------------------------------------------------------- mappings

    def _checked(self, number: int, dfn: int, gfn: int, pgsize: int, nr_pages: int) -> tuple[int, int]:
        """(4 KiB pages in a page, 0) or (0, errno)."""
        limit = self.abi.max_nr_pages
        if limit is not None and nr_pages > limit:
            return 0, -E2BIG
        if number not in self.spaces or number in self.dying:
            return 0, -EINVAL
        if limit is not None:
            unit = 1
        elif pgsize & self._pgsize_mask and not pgsize & pgsize - 1:
            unit = pgsize >> 12
        else:
            return 0, -EINVAL
        if (dfn | gfn) & unit - 1 or dfn + nr_pages * unit - 1 > self._max_dfn:
            return 0, -EINVAL
        return (unit, 0) if nr_pages * unit <= MAX_PAGES else (0, -E2BIG)

    def _region_ahead(self, number: int, dfn: int, count: int) -> int:
        """How many of ``count`` pages from ``dfn`` come before the first in a reserved region."""
        for first, last in self.regions[number]:
            if dfn <= last and first < dfn + count:
                count = max(first - dfn, 0)
        return count

    def _start(self, dfn: int, unit: int, total: int) -> int:
        """The page with which the call begins, -1 if the guest's idea of it is none that the hypervisor would have."""
        if not self.progress:
            return 0
        start = self.progress - dfn % 256
        return start if not start % unit and 0 <= start < total else -1

    def _map(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number, gfn, dfn, flags, pgsize, nr_pages, _ = args
        unit, error = self._checked(number, dfn, gfn, pgsize, nr_pages)
        if error:
            return error, (0,)
        if flags & ~self.abi.map_flags_mask or not flags & (self.abi.map_readable | self.abi.map_writeable):
            return -EINVAL, (0,)
        total = nr_pages * unit
        start = self._start(dfn, unit, total)
        if start < 0:
            return -EINVAL, (0,)
        dfn, gfn, total = dfn + start, gfn + start, total - start
        did, reached = self._told(args[2], start, unit, out)
        space = self.spaces[number]
        limit, error = total, 0
        if self.regions[number]:
            limit = self._region_ahead(number, dfn, total)
            if limit < total:
                error = -EADDRNOTAVAIL
        pieces: list[tuple[int, int]] = []
        done = 0
        write = bool(flags & self.abi.map_writeable)
        while done < limit:
            mfn, count, refused = self.frames.run(gfn + done, limit - done)
            if not refused and self.odd:
                count, refused = self._before_refused(mfn, count, write, result, did - done)
            if count:
                pieces.append((mfn, count))
                done += count
            if refused:
                limit, error = done, refused
                break
        free = space.first_mapped(dfn, limit)
        if free < limit:
            limit, error = free, -EADDRINUSE
        limit, cut = self._cut_short(result, did, reached, limit, unit, did + 512)
        access = (flags & self.abi.map_readable and 1) | (write and 2)
        at = 0
        for mfn, count in pieces:
            if at >= limit:
                break
            count = min(count, limit - at)
            space.add(dfn + at, count, mfn - dfn - at, access)
            at += count
        return cut or error, ((start + limit) // unit,)

    def _told(self, dfn: int, start: int, unit: int, out: Args) -> tuple[int, int]:
        """Pages behind the first that the call did, and that its passes did before they were preempted, as they say."""
        passes = self.passes()
        return (out[0] * unit - start if out else 0), (passes[-1] - dfn % 256 - start if passes else 0)

    def _cut_short(self, result: int, did: int, reached: int, stop: int, unit: int, pages: int) -> tuple[int, int]:
        """(pages done, errno or 0) where memory for tables, a flush or a copy may have ended the call, which says that
        it did ``did`` pages, before page number ``stop`` did.  Passes of it got to page ``reached``."""
        whole = stop - stop % unit
        if self.stopped:
            return min(reached, whole), -EFAULT
        if self.unconfirmed():
            self.unsure = True
            paused = reached < did and self.pauses()
            return (did if reached <= did <= whole and (paused or self.starved(pages)) else whole), -EIO
        if result == -ENOMEM and reached <= did < stop and self.starved(pages):
            return did, -ENOMEM
        return whole, 0

    def _unmap(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number, dfn, pgsize, nr_pages, _ = args
        unit, error = self._checked(number, dfn, 0, pgsize, nr_pages)
        if error:
            return error, (0,)
        total = nr_pages * unit
        start = self._start(dfn, unit, total)
        if start < 0:
            return -EINVAL, (0,)
        dfn, total = dfn + start, total - start
        space = self.spaces[number]
        limit = self._region_ahead(number, dfn, total) if self.regions[number] else total
        if limit < total:
            error = -EADDRNOTAVAIL
        mapped = space.first_hole(dfn, limit)
        if mapped < limit:
            limit, error = mapped, -ENOENT
        did, reached = self._told(args[1], start, unit, out)
        limit, cut = self._cut_short(result, did, reached, limit, unit, total)
        if limit:
            space.remove(dfn, limit)
        return cut or error, ((start + limit) // unit,)

    def _flush(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number, dfn, pgsize, nr_pages = args
        _, error = self._checked(number, dfn, 0, pgsize, nr_pages)
        return error or (-EIO if self.unconfirmed() else 0), ()

    def _lookup(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number, dfn, _ = args
        if number not in self.spaces or number in self.dying:
            return -EINVAL, (0,)
        mfn = self.reach(number, dfn)[0]
        if mfn is None:
            return -ENOENT, (0,)
        if self.frames.pv:
            return 0, (mfn,)
        if self.odd.get(mfn) in ("gone", "hole", "paged", "foreign") or mfn not in self._gfns:
            return -ENOENT, (0,)
        return 0, (self._gfns[mfn],)

    @property
    def _gfns(self) -> dict[int, int]:
        return {mfn: gfn for gfn, mfn in enumerate(self.frames.mfns)}

    # ----------------------------------------------------------------------------------------------- the other end

    def reach(self, number: int, dfn: int) -> tuple[int | None, int]:
        """(machine frame, access) that a device in context ``number`` finds at ``dfn``; (``None``, 0) for nothing."""
        if not number:
            if not self.frames.own(dfn) or self.odd.get(self.frames.machine(dfn)) == "gone":
                return None, 0
            return self.frames.machine(dfn), 3
        for first, last in self.regions[number]:
            if first <= dfn <= last:
                return dfn, 3
        found = self.spaces[number].at(dfn)
        return (dfn + found[2], found[3]) if found is not None else (None, 0)
