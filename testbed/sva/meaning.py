# SPDX-License-Identifier: GPL-2.0-or-later
"""What an STE or a CD means, as the hardware half decodes it; and a word for its kind.

The driver's own idea of which bits are in use is not asked here.  Two entries that the unit decodes alike are the same
entry to a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from machine.iommu.smmuv3.cd import Cd0, decode_cd
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.ste import Ste0, Ste1, decode_stage1, decode_ste
from testbed.sva.stores import Entry

INVALID: Final = "V=0"
Meaning = Callable[[Entry], object]


def ste_meaning(config: Smmuv3Config) -> Meaning:
    """Meaning of stream table entries of a unit."""

    def meaning(entry: Entry) -> object:
        if not Ste0.v.get(entry[0]):
            return INVALID
        return decode_ste(_four(entry), config)

    return meaning


def cd_meaning(config: Smmuv3Config) -> Meaning:
    """Meaning of context descriptors reached through an ordinary stage 1 stream."""
    low = Ste0.pack(v=1, config=5)
    stage1 = decode_stage1(low, 0, 0, config, False)
    assert not isinstance(stage1, str)

    def meaning(entry: Entry) -> object:
        if not Cd0.v.get(entry[0]):
            return INVALID
        return decode_cd(_four(entry), stage1, config)

    return meaning


def _four(entry: Entry) -> tuple[int, int, int, int]:
    return entry[0], entry[1], entry[2], entry[3]


def ste_kind(entry: Entry) -> str:
    """``invalid``, ``abort``, ``bypass``, ``s1`` (with what requests without PASID meet), ``s2``, ``nested``."""
    if not Ste0.v.get(entry[0]):
        return "invalid"
    what = Ste0.config.get(entry[0])
    if not what & 4:
        return "abort"
    default = {0: "terminate", 1: "bypass", 2: "ssid0", 3: "terminate"}[Ste1.s1dss.get(entry[1])]
    return {4: "bypass", 5: f"s1 {default}", 6: "s2", 7: f"nested {default}"}[what]


def cd_kind(entry: Entry) -> str:
    """``empty``, ``live``, ``quiet``."""
    if not Cd0.v.get(entry[0]):
        return "empty"
    return "quiet" if Cd0.epd0.get(entry[0]) else "live"


def mixtures(old: Entry, new: Entry, sights: Iterable[Entry], meaning: Meaning) -> list[Entry]:
    """Of ``sights``, those that are valid and mean neither what ``old`` nor what ``new`` means."""
    allowed = (meaning(old), meaning(new), INVALID)
    return [entry for entry in dict.fromkeys(sights) if meaning(entry) not in allowed]
