# SPDX-License-Identifier: GPL-2.0-or-later
"""The ioctls of /dev/iommu as numbers and layouts (include/uapi/linux/iommufd.h).

The request number holds no size; the first u32 of each struct does.  A struct may grow from release to release, so a
row has a smallest size that is accepted and, per release, the size that the kernel knows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

IOMMUFD_TYPE: Final = ord(";")
IOMMUFD_CMD_BASE: Final = 0x80
VFIO_BASE: Final = 100
IOMMU_TEST_CMD: Final = IOMMUFD_TYPE << 8 | IOMMUFD_CMD_BASE + 32

IOMMU_IOAS_MAP_FIXED_IOVA: Final = 1
IOMMU_IOAS_MAP_WRITEABLE: Final = 2
IOMMU_IOAS_MAP_READABLE: Final = 4

IOMMU_OPTION_RLIMIT_MODE: Final = 0
IOMMU_OPTION_HUGE_PAGES: Final = 1
IOMMU_OPTION_OP_SET: Final = 0
IOMMU_OPTION_OP_GET: Final = 1

IOMMU_VFIO_IOAS_GET: Final = 0
IOMMU_VFIO_IOAS_SET: Final = 1
IOMMU_VFIO_IOAS_CLEAR: Final = 2

IOMMU_HWPT_ALLOC_NEST_PARENT: Final = 1
IOMMU_HWPT_ALLOC_DIRTY_TRACKING: Final = 2
IOMMU_HWPT_FAULT_ID_VALID: Final = 4
IOMMU_HWPT_ALLOC_PASID: Final = 8
IOMMU_HWPT_DATA_NONE: Final = 0

IOMMU_HW_INFO_FLAG_INPUT_TYPE: Final = 1
IOMMU_HW_CAP_DIRTY_TRACKING: Final = 1
IOMMU_HW_CAP_PCI_PASID_EXEC: Final = 2
IOMMU_HW_CAP_PCI_PASID_PRIV: Final = 4
IOMMU_HWPT_DIRTY_TRACKING_ENABLE: Final = 1
IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR: Final = 1

_CODES: Final = {"u8": "B", "u16": "H", "u32": "I", "s32": "i", "u64": "Q"}


@dataclass(frozen=True, slots=True)
class Ioctl:
    """One row: number, name, release that brought it, smallest struct accepted, and the fields in order.

    ``grown`` names for a release the number of bytes it added to those of ``layout`` that came before.
    """

    nr: int
    name: str
    since: tuple[int, int]
    min_size: int
    layout: struct.Struct
    fields: tuple[str, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...]
    """(release, size) in rising order: the size that kernels from that release on know."""

    @property
    def request(self) -> int:
        return IOMMUFD_TYPE << 8 | self.nr

    def size(self, version: tuple[int, int]) -> int:
        """Bytes that a kernel of ``version`` knows of the struct."""
        if len(self.sizes) == 1:
            return self.sizes[0][1]
        known = self.sizes[0][1]
        for since, size in self.sizes:
            if version >= since:
                known = size
        return known


def _row(
    nr: int,
    name: str,
    since: tuple[int, int],
    fields: str,
    min_size: int | None = None,
    grown: tuple[tuple[tuple[int, int], int], ...] = (),
) -> Ioctl:
    names, codes = [], ["<"]
    for field in fields.split():
        label, _, kind = field.partition(":")
        names.append(label)
        codes.append(_CODES[kind or "u32"])
    layout = struct.Struct("".join(codes))
    return Ioctl(nr, name, since, min_size or layout.size, layout, tuple(names), grown or ((since, layout.size),))


_ROWS: Final = (
    _row(0x80, "DESTROY", (6, 2), "size id"),
    _row(0x81, "IOAS_ALLOC", (6, 2), "size flags out_ioas_id"),
    _row(0x82, "IOAS_ALLOW_IOVAS", (6, 2), "size ioas_id num_iovas __reserved allowed_iovas:u64"),
    _row(0x83, "IOAS_COPY", (6, 2), "size flags dst_ioas_id src_ioas_id length:u64 dst_iova:u64 src_iova:u64"),
    _row(
        0x84,
        "IOAS_IOVA_RANGES",
        (6, 2),
        "size ioas_id num_iovas __reserved allowed_iovas:u64 out_iova_alignment:u64",
    ),
    _row(0x85, "IOAS_MAP", (6, 2), "size flags ioas_id __reserved user_va:u64 length:u64 iova:u64"),
    _row(0x86, "IOAS_UNMAP", (6, 2), "size ioas_id iova:u64 length:u64"),
    _row(0x87, "OPTION", (6, 2), "size option_id op:u16 __reserved:u16 object_id val64:u64"),
    _row(0x88, "VFIO_IOAS", (6, 2), "size ioas_id op:u16 __reserved:u16"),
    _row(
        0x89,
        "HWPT_ALLOC",
        (6, 6),
        "size flags dev_id pt_id out_hwpt_id __reserved data_type data_len data_uptr:u64 fault_id __reserved2",
        24,
        (((6, 6), 24), ((6, 7), 40), ((6, 11), 48)),
    ),
    _row(
        0x8A,
        "GET_HW_INFO",
        (6, 6),
        "size flags dev_id data_len data_uptr:u64 out_data_type out_max_pasid_log2:u8 "
        "__reserved0:u8 __reserved1:u8 __reserved2:u8 out_capabilities:u64",
        32,
        (((6, 6), 32), ((6, 7), 40)),
    ),
    _row(0x8B, "HWPT_SET_DIRTY_TRACKING", (6, 7), "size flags hwpt_id __reserved"),
    _row(
        0x8C,
        "HWPT_GET_DIRTY_BITMAP",
        (6, 7),
        "size hwpt_id flags __reserved iova:u64 length:u64 page_size:u64 data:u64",
    ),
    _row(
        0x8D,
        "HWPT_INVALIDATE",
        (6, 8),
        "size hwpt_id data_uptr:u64 data_type entry_len entry_num __reserved",
    ),
    _row(0x8E, "FAULT_QUEUE_ALLOC", (6, 11), "size flags out_fault_id out_fault_fd"),
    _row(0x8F, "IOAS_MAP_FILE", (6, 13), "size flags ioas_id fd:s32 start:u64 length:u64 iova:u64"),
    _row(
        0x90,
        "VIOMMU_ALLOC",
        (6, 13),
        "size flags type dev_id hwpt_id out_viommu_id data_len __reserved data_uptr:u64",
        24,
        (((6, 13), 24), ((6, 17), 40)),
    ),
    _row(0x91, "VDEVICE_ALLOC", (6, 13), "size viommu_id dev_id out_vdevice_id virt_id:u64"),
    _row(0x92, "IOAS_CHANGE_PROCESS", (6, 13), "size __reserved"),
    _row(
        0x93,
        "VEVENTQ_ALLOC",
        (6, 15),
        "size flags viommu_id type veventq_depth out_veventq_id out_veventq_fd __reserved",
        28,
    ),
    _row(
        0x94,
        "HW_QUEUE_ALLOC",
        (6, 17),
        "size flags viommu_id type index out_hw_queue_id nesting_parent_iova:u64 length:u64",
    ),
)

BY_NAME: Final = {row.name: row for row in _ROWS}
BY_NUMBER: Final = {row.nr: row for row in _ROWS}


def pack(name: str, **fields: int) -> bytes:
    """The struct of ioctl ``name`` with its size filled in; fields that are not given are 0."""
    row = BY_NAME[name]
    values = {"size": row.layout.size, **fields}
    unknown = values.keys() - set(row.fields)
    if unknown:
        raise ValueError(f"{name} has no field {sorted(unknown)[0]!r}")
    return row.layout.pack(*(values.get(field, 0) for field in row.fields))


def unpack(name: str, data: bytes) -> dict[str, int]:
    """The fields of the struct of ioctl ``name``."""
    row = BY_NAME[name]
    return dict(zip(row.fields, row.layout.unpack(data)))
