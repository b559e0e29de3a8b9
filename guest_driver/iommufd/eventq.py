# SPDX-License-Identifier: GPL-2.0-or-later
"""Queues that a program reads: page requests with answers, and events of a vIOMMU (iommufd/eventq.c).

Both are an object with an id and a file; the object cannot be destroyed while the file is open.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from abi.errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, EOVERFLOW
from guest_driver.iommufd.objects import IommufdObject
from guest_driver.iommufd.process import AddressSpace, ReadableFile
from guest_driver.iommufd.viommu import Viommu
from guest_driver.linux.errno import ESPIPE
from guest_driver.linux.io_pgfault import PASID_VALID, RESP_INVALID, RESP_SUCCESS, IopfGroup

if TYPE_CHECKING:
    from guest_driver.iommufd.attach import AttachHandle
    from guest_driver.iommufd.context import IommufdCtx, Ucmd

FAULT: Final = struct.Struct("<IIIIIIQII")
"""flags, dev_id, pasid, grpid, perm, reserved, addr, length, cookie."""
RESPONSE: Final = struct.Struct("<II")
EVENT_HEADER: Final = struct.Struct("<II")
LOST_EVENTS: Final = 1
_SEQUENCE_MASK: Final = (1 << 31) - 1


class EventQueue(IommufdObject, ReadableFile):
    """What the two have in common: the file keeps object and context alive."""

    __slots__ = ()

    def open(self) -> None:
        self.users += 1
        self.ctx.refs += 1

    def release(self) -> None:
        self.users -= 1
        self.ctx.put()


def install_queue(cmd: Ucmd, queue: EventQueue, fd_field: str) -> int:
    """Publish a queue with a descriptor: the number is answered before anything that cannot be undone is done."""
    files = cmd.process.files
    objects = cmd.ctx.objects
    fd = files.reserve() if cmd.ctx.kernel.kzalloc("iommufd event file") else -ENOMEM
    if fd < 0:
        objects.abort_and_destroy(queue)
        return fd
    cmd[fd_field] = fd
    ret = cmd.respond()
    if ret:
        files.unreserve(fd)
        objects.abort_and_destroy(queue)
        return ret
    objects.finalize(queue)
    queue.open()
    files.install(fd, queue)
    return 0


# ------------------------------------------------------------------------------------------- page requests


class FaultQueue(EventQueue):
    """Page requests of the devices on tables that name this queue."""

    __slots__ = ("deliver", "response")

    def __init__(self, ctx: IommufdCtx) -> None:
        super().__init__(ctx)
        self.deliver: list[IopfGroup] = []
        """Not read yet, oldest first."""
        self.response: dict[int, IopfGroup] = {}
        """Read and not answered, by cookie."""

    def iopf_handler(self, group: IopfGroup) -> int:
        """iommufd_fault_iopf_handler: a group is complete."""
        self.deliver.append(group)
        return 0

    def readable(self) -> bool:
        return bool(self.deliver)

    def read(self, mm: AddressSpace, address: int, count: int) -> int:
        """Whole groups only, as many as fit; 0 if nothing waits."""
        if count % FAULT.size:
            return -ESPIPE
        done, ret = 0, 0
        while self.deliver and not ret:
            group = self.deliver[0]
            if done >= count or len(group.faults) * FAULT.size > count - done:
                break
            if not self.ctx.kernel.kzalloc("fault cookie"):
                ret = -ENOMEM
                break
            group.cookie = next(number for number in range(1, 1 << 32) if number not in self.response)
            if not mm.write(address + done, _records(group)):
                ret = -EFAULT
                break
            self.deliver.pop(0)
            self.response[group.cookie] = group
            done += len(group.faults) * FAULT.size
        return done or ret

    def write(self, mm: AddressSpace, address: int, count: int) -> int:
        """Answers; the first that is wrong ends it, those before count."""
        if count % RESPONSE.size:
            return -ESPIPE
        done, ret = 0, 0
        while done < count:
            raw = mm.read(address + done, RESPONSE.size)
            if raw is None:
                ret = -EFAULT
                break
            cookie, code = RESPONSE.unpack(raw)
            if code not in (RESP_SUCCESS, RESP_INVALID) or cookie not in self.response:
                ret = -EINVAL
                break
            self.response.pop(cookie).respond(code)
            done += RESPONSE.size
        return done or ret

    def drop(self, handle: AttachHandle | None) -> None:
        """iommufd_auto_response_faults: what came through an attachment that ends is answered INVALID."""
        for group in [group for group in self.deliver if group.handle is handle]:
            self.deliver.remove(group)
            group.respond(RESP_INVALID)
        for cookie, group in list(self.response.items()):
            if group.handle is handle:
                del self.response[cookie]
                group.respond(RESP_INVALID)

    def destroy(self) -> None:
        for group in (*self.deliver, *self.response.values()):
            group.respond(RESP_INVALID)
        self.deliver.clear()
        self.response.clear()


def _records(group: IopfGroup) -> bytes:
    """struct iommu_hwpt_pgfault of each request of a group."""
    from guest_driver.iommufd.attach import AttachHandle

    assert isinstance(group.handle, AttachHandle)
    dev_id = group.handle.idev.id
    out = b""
    for fault in group.faults:
        pasid = fault.pasid if fault.flags & PASID_VALID else 0
        out += FAULT.pack(fault.flags, dev_id, pasid, fault.grpid, fault.perm, 0, fault.addr, 0, group.cookie)
    return out


def fault_queue_alloc(cmd: Ucmd) -> int:
    if cmd["flags"]:
        return -EOPNOTSUPP
    queue = FaultQueue(cmd.ctx)
    ret = cmd.ctx.objects.alloc(queue)
    if ret:
        return ret
    cmd["out_fault_id"] = queue.id
    return install_queue(cmd, queue, "out_fault_fd")


# --------------------------------------------------------------------------------------- events of a vIOMMU


class VEventQueue(EventQueue):
    """Events of one type of a vIOMMU, ``depth`` of them at most; what does not fit is counted in the sequence."""

    __slots__ = ("depth", "events", "sequence", "type", "viommu")

    def __init__(self, ctx: IommufdCtx, viommu: Viommu, type: int, depth: int) -> None:
        super().__init__(ctx)
        self.viommu: Final = viommu
        self.type: Final = type
        self.depth: Final = depth
        self.sequence = 0
        self.events: list[tuple[int, bytes | None]] = []
        """(sequence, data), data of ``None`` for the one entry that says that events were lost."""
        viommu.users += 1
        viommu.veventqs.append(self)

    def report(self, data: bytes) -> int:
        """One event; -EOVERFLOW or -ENOMEM if it was lost (which the reader will see)."""
        ret = 0
        if sum(entry[1] is not None for entry in self.events) == self.depth:
            ret = -EOVERFLOW
        elif not self.ctx.kernel.kzalloc("iommufd_vevent"):
            ret = -ENOMEM
        # An entry that says "lost" is only ever the last; a newer one says it by its sequence.
        self.events = [entry for entry in self.events if entry[1] is not None]
        self.events.append((self.sequence, None if ret else data))
        self.sequence = self.sequence + 1 & _SEQUENCE_MASK
        return ret

    def readable(self) -> bool:
        return bool(self.events)

    def read(self, mm: AddressSpace, address: int, count: int) -> int:
        """Whole events, as many as fit."""
        done = 0
        while self.events:
            sequence, data = self.events[0]
            record = EVENT_HEADER.pack(LOST_EVENTS if data is None else 0, sequence) + (data or b"")
            if len(record) > count - done:
                break
            if not mm.write(address + done, record):
                return done or -EFAULT
            self.events.pop(0)
            done += len(record)
        return done

    def write(self, mm: AddressSpace, address: int, count: int) -> int:
        return -EINVAL

    def destroy(self) -> None:
        self.viommu.veventqs.remove(self)
        self.viommu.users -= 1


def veventq_alloc(cmd: Ucmd) -> int:
    """-EEXIST: the vIOMMU has a queue of that type."""
    if cmd["flags"] or cmd["__reserved"] or not cmd["type"]:
        return -EOPNOTSUPP
    if not cmd["veventq_depth"]:
        return -EINVAL
    viommu = cmd.ctx.objects.get(cmd["viommu_id"], Viommu)
    if viommu is None:
        return -ENOENT
    if any(queue.type == cmd["type"] for queue in viommu.veventqs):
        return -EEXIST
    queue = VEventQueue(cmd.ctx, viommu, cmd["type"], cmd["veventq_depth"])
    ret = cmd.ctx.objects.alloc(queue)
    if ret:
        queue.destroy()
        return ret
    cmd["out_veventq_id"] = queue.id
    return install_queue(cmd, queue, "out_veventq_fd")
