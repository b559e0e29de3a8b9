# SPDX-License-Identifier: GPL-2.0-or-later
"""The SMMUv3 backend: contexts as stage 2 trees with a VMID on every unit, devices as streams.

When caches are invalidated, and where.  Removing or replacing something takes a TLBI; adding to what was empty takes
none, since a TLB holds no faults (Arm ARM D8.17).  Cached pointers to tables go when tables leave the tree; a table
that was folded away stays beside it, with the same translations in it, until then.

Commands go to the units where the context is in use.  When a context's last stream leaves a unit, its VMID is
invalidated there at once, so a unit that the context does not use holds nothing of it.  Where a unit did not confirm,
the context stays *doubtful* on that unit: everything of it is invalidated there again, before anything else is
believed, until the unit confirms.  A doubtful context's VMID and root are never used again.  A stream whose move could
be neither made nor undone aborts, and is translated again once the unit confirms to have forgotten the context.

What a snapshot keeps of contexts and devices is their ``hw``; both are replaced, never changed.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, cast

from abi.errno import EINVAL, EIO, ENODEV, ENOMEM, ENOSPC, ETIMEDOUT
from hypervisor.errors import XenBug
from hypervisor.frames import FrameTable
from hypervisor.iommu.backend import FaultReport
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.pagetable.format import Format
from hypervisor.pagetable.radix import Changes, PageTable
from hypervisor.platform import Platform
from hypervisor.smmuv3 import layouts as hw
from hypervisor.smmuv3.context_hw import ContextHw, hw_of
from hypervisor.smmuv3.device_caches import WHOLE, DeviceCaches, Stream, pages_of_device
from hypervisor.smmuv3.format import STAGE2
from hypervisor.smmuv3.geometry import Geometry, allocate_root, geometry
from hypervisor.smmuv3.invalidation import ALL, LEAF, range_commands, use_of
from hypervisor.smmuv3.nesting import Smmuv3Nesting, stage1_everywhere, stage1_words
from hypervisor.smmuv3.unit import SmmuUnit, covering


class Smmuv3Backend:
    """Drives the SMMUs that ``platform.firmware`` describes.

    ``input_bits`` narrows the I/O virtual addresses below what the units and their roots allow; ``ValueError`` if
    there is no SMMU or the width cannot be.
    """

    name: str = "smmuv3"
    format: Format = STAGE2
    orders: tuple[int, ...] = (0, 9, 18)
    flushes_additions: bool = False
    passes_through: bool = True
    page_table: type[PageTable] = PageTable
    """What a context's tree is made with."""

    def __init__(self, platform: Platform, frames: FrameTable, *, input_bits: int | None = None) -> None:
        nodes = platform.firmware.smmus
        if not nodes:
            raise ValueError("firmware describes no SMMU")
        self._memory: Final = platform.memory
        self._frames: Final = frames
        self.units: Final = tuple(SmmuUnit(index, node, platform, frames) for index, node in enumerate(nodes))
        widest = min(unit.address_bits for unit in self.units)
        self.geometry: Final[Geometry] = geometry(input_bits or widest, widest)
        self.max_iova: int = self.geometry.max_iova
        self._breaks: Final = not all(unit.exchanges_freely for unit in self.units)
        self.caches: Final = DeviceCaches(self.units)
        self._owners: dict[Stream, IommuContext] = {}
        """The context that a stream is translated through; a stream that aborts has none."""
        self._unsure: set[Stream] = set()
        """Streams whose unit may still act on an entry that is no longer in memory."""
        self.nesting: Smmuv3Nesting | None = Smmuv3Nesting(self.units) if stage1_everywhere(self.units) else None

    def enable(self) -> int:
        return next((error for unit in self.units if (error := unit.enable())), 0)

    # --------------------------------------------------------------------------------------------- contexts

    def context_init(self, context: IommuContext) -> int:
        if context.parent is not None:
            return 0  # the parent's tree and tags serve it
        if context.enforces_cache:  # would take S2FWB: a device's attributes weaken those of stage 2
            return -EINVAL
        vmids: list[int] = []
        for unit in self.units:
            vmid = unit.take_vmid()
            if vmid is None:
                self._free_vmids(vmids)
                return -ENOSPC
            vmids.append(vmid)
        context.hw = ContextHw(tuple(vmids), (0,) * len(self.units))
        if context.passes_through:
            return 0
        root = allocate_root(self.geometry, self._frames, context.pool)
        if root is None:
            context.hw = None
            self._free_vmids(vmids)
            return -ENOMEM
        for k in range(self.geometry.root_frames):
            self._memory.zero_frame(root + k)
        context.table = self.page_table(
            self._memory,
            STAGE2,
            self.geometry.levels,
            root,
            context.pool,
            self.orders,
            self.geometry.root_frames,
            self._breaker(context) if self._breaks else None,
        )
        return 0

    def context_release(self, context: IommuContext) -> None:
        if context.parent is not None:
            return
        if any(hw_of(context).streams):
            raise XenBug(f"{context} goes away with streams in it")
        self._settle(context)
        state = hw_of(context)
        if context.table is not None and not state.doubtful:
            for k in range(context.table.root_frames):
                context.pool.free(context.table.root + k)
        for unit, vmid in zip(self.units, state.vmids):
            if unit.index not in state.doubtful:
                unit.free_vmid(vmid)
        context.table = None
        context.hw = None

    def _free_vmids(self, vmids: list[int]) -> None:
        for unit, vmid in zip(self.units, vmids):
            unit.free_vmid(vmid)

    # ---------------------------------------------------------------------------------------------- devices

    def attach(self, device: PciDevice, context: IommuContext) -> int:
        """A device that did not answer an invalidation once aborts for good; it can be put back into the default
        context all the same, so that others can be given up, and gets -EIO in any other."""
        streams = self._streams_of(device)
        if streams is None:
            return -ENODEV
        if not self.caches.broken.isdisjoint(streams):
            return -EIO if context.number else self.detach(device)
        if device.function.ats:
            self.caches.add(streams)
        self._settle(context.stage2)
        for index, sid in streams:
            if index in hw_of(context.stage2).doubtful:
                return -EIO  # the unit may still hold translations that this context no longer has
            unit = self.units[index]
            error = unit.streams.prepare(sid, unit.commands)
            if error:
                return error
        before = [self._owners.get(stream) for stream in streams]
        for position, stream in enumerate(streams):
            error = self._point(stream, context)
            if error:
                self._doubt(context.stage2, stream[0])  # the unit may have used the entry that it did not confirm
                for undo in range(position, -1, -1):
                    self._put_back(streams[undo], before[undo], context)
                self._settle(context.stage2)
                return error
        device.hw = streams
        return 0

    def detach(self, device: PciDevice) -> int:
        error = 0
        for stream in device.hw or ():
            if self._block(stream):
                self._abandon(stream, self._owners.get(stream))
                error = -EIO
        return error

    def cut_off(self, device: PciDevice) -> bool:
        streams = set(device.hw or ()) - self.caches.broken
        return any(self.units[index].streams.aborts(sid) for index, sid in streams)

    def _streams_of(self, device: PciDevice) -> tuple[Stream, ...] | None:
        """The streams of all requester ids, ``None`` if one is behind no unit."""
        if device.hw is not None:
            return cast("tuple[Stream, ...]", device.hw)
        streams = []
        for requester in device.requester_ids:
            unit = covering(self.units, requester)
            if unit is None:
                return None
            streams.append((unit.index, unit.stream_of(requester)))
        return tuple(streams)

    def _point(self, stream: Stream, context: IommuContext) -> int:
        """Translate ``stream`` through ``context``; -EIO with the stream blocked as far as memory says."""
        index, sid = stream
        unit = self.units[index]
        if stream in self.caches.caching:
            error = self._block(stream)
            if error:
                return error
        if stream in self.caches.broken:
            return -EIO
        dw2, dw3 = unit.tree_words(self.geometry, hw_of(context.stage2).vmids[index], context.stage2.table)
        first = None if context.nested is None else stage1_words(context.nested)
        caches = first is None and dw3 != 0 and self.caches.capable(stream)  # what Xen's own tables give
        error = unit.streams.install(sid, dw2, dw3, caches, unit.commands, first)
        if not error:
            if caches:
                self.caches.start(stream)
            self._move(stream, context)
        return error

    def _block(self, stream: Stream) -> int:
        index, sid = stream
        unit = self.units[index]
        error = unit.streams.block(sid, unit.commands) or self.caches.stop(stream)
        if not error:
            self._move(stream, None)
        return error

    def _put_back(self, stream: Stream, owner: IommuContext | None, tried: IommuContext) -> None:
        """After a failed attach to ``tried``: as it was, or blocked if that fails too."""
        if owner is None or stream in self.caches.broken:
            error = self._block(stream)
        else:
            error = self._point(stream, owner)
        if error:
            self._abandon(stream, owner, tried)

    def _abandon(self, stream: Stream, owner: IommuContext | None, *others: IommuContext) -> None:
        """Which tree the unit uses for an entry that now aborts is unknown: none of them may be taken for flushed."""
        if self._owners.get(stream) is not owner:  # it got away, and not back
            self._move(stream, owner)
        self._unsure.add(stream)
        for context in (owner, *others):
            if context is not None:
                self._doubt(context.stage2, stream[0])
                context.stage2.unconfirmed = True

    def _reconnect(self, context: IommuContext) -> int:
        """Translate again what :meth:`_abandon` left in ``context``, of which no unit holds anything old: 0, -EIO."""
        for stream, owner in self._owners.copy().items():
            aborts = owner.stage2 is context and self.units[stream[0]].streams.aborts(stream[1])
            if aborts and stream not in self.caches.broken:
                error = self._point(stream, owner)
                if error:
                    self._abandon(stream, owner)
                    return error
        return 0

    def _move(self, stream: Stream, target: IommuContext | None) -> None:
        """Account for a stream whose entry was changed and confirmed."""
        self._unsure.discard(stream)
        source = self._owners.pop(stream, None)
        if target is not None:
            self._owners[stream] = target
        for context in (source, target):
            if context is not None and context.nested is None and self.caches.capable(stream):
                self._note_caching(context)
        if source is target:
            return
        index = stream[0]
        if target is not None:
            self._count(target.stage2, index, 1)
        if source is not None:
            self._count(source.stage2, index, -1)
            if source.nested is not None or not hw_of(source.stage2).streams[index]:
                # what guests' tables give is cached under one tag, whichever table it was
                self._doubt(source.stage2, index)
                self._settle(source.stage2)

    # ------------------------------------------------------------------------------------------ invalidation

    def flush(self, context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
        state: ContextHw = context.hw
        if state.mixed:
            context.hw = replace(state, mixed=False)
            return self.flush_all(context) or -EIO
        if state.doubtful:
            return self._settle(context)
        if not changes.modified:
            return 0
        if context.children:  # combined translations have no intermediate address to be found by
            return self.flush_all(context)
        leaf = 0 if changes.tables or changes.folded else LEAF
        error = 0
        if pages == 1:
            for use in state.uses:
                if use.queue.run_one(use.page, dfn << 12 | leaf):
                    error = -EIO
        else:
            for use in state.uses:
                commands = range_commands(use, dfn, pages, leaf)
                if use.queue.run_one(*commands) if len(commands) == 2 else use.queue.run(commands):
                    error = -EIO
        if error:
            self._doubt_all(context)
        elif state.caching:
            error = self._flush_devices(context, pages_of_device(dfn, pages))
        return error

    def _flush_devices(self, context: IommuContext, what: int) -> int:
        """Make the context's devices forget ``what``, now that the TLBs have; one that does not answer is cut off."""
        error = 0
        for stream in hw_of(context).caching:
            answer = self.caches.forget(stream, what)
            if answer == -ETIMEDOUT:
                answer = self._block(stream)
            if answer:
                self._doubt(context, stream[0])
                error = -EIO
        return error

    def _note_caching(self, context: IommuContext) -> None:
        """Which of the context's streams may keep translations has changed."""
        owners = self._owners
        caching = tuple(sorted(stream for stream in self.caches.caching if owners.get(stream) is context))
        context.hw = replace(hw_of(context), caching=caching)

    def flush_all(self, context: IommuContext) -> int:
        state = hw_of(context)
        if state.doubtful:
            error = self._settle(context)
            if error:
                return error
        error = 0
        for use in state.uses:
            error = use.queue.run_one(use.everything, 0) or error
        if error:
            self._doubt_all(context)
        elif state.caching:
            error = self._flush_devices(context, WHOLE)
        return error

    def _breaker(self, context: IommuContext) -> Callable[[int, int], None]:
        """Break-before-make for ``context`` (Arm ARM D8.17.1): nothing there, hardware told so, then the entry."""
        words = self._memory.words

        def exchange(word: int, entry: int) -> None:
            if hw_of(context).uses:
                words[word] = 0
                if self.flush_all(context):
                    context.hw = replace(hw_of(context), mixed=True)
            words[word] = entry

        return exchange

    def _count(self, context: IommuContext, index: int, more: int) -> None:
        """Note that unit ``index`` has ``more`` streams of the context than before."""
        state = hw_of(context)
        streams = tuple(count + more if k == index else count for k, count in enumerate(state.streams))
        uses = tuple(
            use_of(unit.commands, vmid, unit.ranges)
            for unit, vmid, count in zip(self.units, state.vmids, streams)
            if count
        )
        context.hw = replace(state, streams=streams, uses=uses)

    def _doubt(self, context: IommuContext, index: int) -> None:
        state = hw_of(context)
        context.hw = replace(state, doubtful=state.doubtful | {index})

    def _doubt_all(self, context: IommuContext) -> None:
        """One of the units in use did not confirm; ask all of them again next time."""
        state = hw_of(context)
        used = {unit.index for unit, count in zip(self.units, state.streams) if count}
        context.hw = replace(state, doubtful=state.doubtful | used)

    def _settle(self, context: IommuContext) -> int:
        """Invalidate the whole context where it is doubtful: 0 if it no longer is anywhere, else -EIO.

        Units in use that are not doubtful are told as well: callers have a flush to do.
        """
        state = hw_of(context)
        if not state.doubtful:
            return 0
        failed = set()
        for unit, vmid, count in zip(self.units, state.vmids, state.streams):
            if not count and unit.index not in state.doubtful:
                continue
            unpublished = [self._publish(stream) for stream in sorted(self._unsure) if stream[0] == unit.index]
            if any(unpublished) or unit.commands.run_one(ALL | hw.Tlbi.vmid.put(vmid), 0):
                failed.add(unit.index)
        context.hw = replace(state, doubtful=frozenset(failed))
        error = -EIO if failed else self._flush_devices(context, WHOLE) or self._reconnect(context)
        if error:
            context.unconfirmed = True
        return error

    def _publish(self, stream: Stream) -> int:
        """Make sure that the unit acts on the stream's entry as it is in memory."""
        index, sid = stream
        unit = self.units[index]
        error = unit.streams.publish(sid, unit.commands)
        if not error:
            self._unsure.discard(stream)
        return error

    # ------------------------------------------------------------------------------------ faults, snapshots

    def take_faults(self) -> list[FaultReport]:
        return [report for unit in self.units for report in unit.take_faults()]

    def save(self) -> object:
        return (dict(self._owners), set(self._unsure), self.caches.save(), [unit.save() for unit in self.units])

    def restore(self, state: object) -> None:
        owners, unsure, caches, units = cast("tuple[dict[Stream, IommuContext], set[Stream], Any, list[Any]]", state)
        self._owners = dict(owners)
        self._unsure = set(unsure)
        self.caches.restore(caches)
        for unit, saved in zip(self.units, units):
            unit.restore(saved)
