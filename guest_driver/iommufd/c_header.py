# SPDX-License-Identifier: GPL-2.0-or-later
"""A C header for /dev/iommu, written from the tables here, for hosts whose own linux/iommufd.h is missing or older.

``python -m guest_driver.iommufd.c_header`` prints it.  Names are those of the kernel's header, so that a program
compiles against either.
"""

from __future__ import annotations

from typing import Final

from guest_driver.iommufd import mock_viommu, selftest, uapi
from guest_driver.iommufd.eventq import EVENT_HEADER, FAULT, RESPONSE
from guest_driver.linux import mock_domain

_STRUCTS: Final = {"GET_HW_INFO": "hw_info", "FAULT_QUEUE_ALLOC": "fault_alloc"}
"""Where the struct is not called after its ioctl."""
_TYPES: Final = {"u8": "__u8", "u16": "__u16", "u32": "__u32", "s32": "__s32", "u64": "__aligned_u64"}
_CODES: Final = {"B": "u8", "H": "u16", "I": "u32", "i": "s32", "Q": "u64"}
_UNION_NAMES: Final = {
    "MD_CHECK_MAP": "check_map",
    "MD_CHECK_REFS": "check_refs",
    "SET_TEMP_MEMORY_LIMIT": "memory_limit",
    "MD_CHECK_IOTLB": "check_iotlb",
    "DEV_CHECK_CACHE": "check_dev_cache",
    "PASID_CHECK_HWPT": "pasid_check",
}
_PREFIXES: Final = ("IOMMU_IOAS_MAP_", "IOMMU_OPTION_", "IOMMU_VFIO_IOAS_", "IOMMU_HWPT_", "IOMMU_HW_")
_RECORDS: Final = {
    "iommu_hwpt_pgfault": (FAULT, "flags dev_id pasid grpid perm __reserved addr length cookie"),
    "iommu_hwpt_page_response": (RESPONSE, "cookie code"),
    "iommufd_vevent_header": (EVENT_HEADER, "flags sequence"),
}
_TEST_CONSTANTS: Final = {
    "IOMMU_HWPT_DATA_SELFTEST": mock_domain.DATA_TYPE,
    "IOMMU_HWPT_INVALIDATE_DATA_SELFTEST": mock_domain.INVALIDATE_TYPE,
    "IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST": mock_domain.INVALIDATE_TYPE,
    "IOMMU_HW_INFO_TYPE_SELFTEST": mock_domain.HW_INFO_TYPE,
    "IOMMU_TEST_DEV_CACHE_DEFAULT": mock_domain.CACHE_DEFAULT,
    "IOMMU_VIOMMU_TYPE_SELFTEST": mock_viommu.VIOMMU_TYPE,
    "IOMMU_VEVENTQ_TYPE_SELFTEST": mock_viommu.VEVENT_TYPE,
    "IOMMU_HW_QUEUE_TYPE_SELFTEST": mock_viommu.HW_QUEUE_TYPE,
}


def struct_name(ioctl: str) -> str:
    """The C name of an ioctl's struct."""
    return f"iommu_{_STRUCTS.get(ioctl, ioctl.lower())}"


def header() -> str:
    """The whole header."""
    out = [
        "/* SPDX-License-Identifier: GPL-2.0-or-later */",
        "/* Written from the tables of guest_driver/iommufd; do not edit. */",
        "#ifndef PVIOMMU_IOMMUFD_H\n#define PVIOMMU_IOMMUFD_H\n#include <linux/ioctl.h>\n#include <linux/types.h>\n",
        f"#define IOMMUFD_TYPE {uapi.IOMMUFD_TYPE:#x}",
    ]
    out += [
        f"#define {name} {value:#x}"
        for name, value in vars(uapi).items()
        if name.startswith(_PREFIXES) and isinstance(value, int)
    ]
    for row in uapi.BY_NUMBER.values():
        out.append(_struct(struct_name(row.name), row.layout.format, row.fields))
        out.append(f"#define IOMMU_{row.name} _IO(IOMMUFD_TYPE, {row.nr:#x})\n")
    out += [_struct(name, layout.format, tuple(fields.split())) for name, (layout, fields) in _RECORDS.items()]
    out += _test_command()
    out.append("#endif")
    return "\n".join(out) + "\n"


def _struct(name: str, layout: str, fields: tuple[str, ...]) -> str:
    members = "".join(f"\t{_TYPES[_CODES[code]]} {field};\n" for code, field in zip(layout[1:], fields))
    return f"struct {name} {{\n{members}}};"


def _test_command() -> list[str]:
    out = [f"\n#define IOMMU_TEST_OP_{name} {number}" for name, number in selftest.NUMBERS.items()]
    out += [f"#define {name} {value:#x}" for name, value in _TEST_CONSTANTS.items()]
    members = []
    for name, _, fields, _ in selftest.OPS.values():
        inside = []
        for field in fields.split():
            label, _, kind = field.partition(":")
            inside.append(f"{_TYPES[kind or 'u32']} {label};")
        members.append(f"\t\tstruct {{ {' '.join(inside)} }} {_UNION_NAMES.get(name, name.lower())};\n")
    union = f"\tunion {{\n{''.join(members)}\t}};\n"
    out.append(f"struct iommu_test_cmd {{\n\t__u32 size, op, id, __reserved;\n{union}\t__u32 last;\n}};")
    out.append(f"#define IOMMU_TEST_CMD _IO(IOMMUFD_TYPE, {uapi.IOMMU_TEST_CMD & 0xFF:#x})")
    return out


if __name__ == "__main__":
    print(header(), end="")
