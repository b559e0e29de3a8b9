# SPDX-License-Identifier: GPL-2.0-or-later
"""VT-d second-stage entries as a :class:`Format` (VT-d specification 9.8, "Second-Stage Paging Entries").

R is bit 0, W bit 1, PS (a leaf above level 1) bit 7, the frame bits 51:12.  Hardware ignores bits 61:52; Xen keeps
its contiguity markers in 55:52, and bit 60 marks leaves that hold a page reference.
"""

from dataclasses import replace
from typing import Final

from hypervisor.pagetable.format import Format

R: Final = 1 << 0
W: Final = 1 << 1
PS: Final = 1 << 7
SNP: Final = 1 << 11
"""Accesses are snooped whatever the device asks for; reserved behind a unit without snoop control (ECAP.SC 0)."""
REFERENCED: Final = 1 << 60

SECOND_STAGE: Final = Format(
    name="VT-d second stage",
    leaf_bits=(0, 0, PS, PS),
    table_bits=R | W,
    kind_mask=PS,
    leaf_kind=PS,
    read=R,
    write=W,
    permission={1: R, 2: W, 3: R | W},
    referenced=REFERENCED,
    software=REFERENCED,
)

SNOOPED: Final = replace(SECOND_STAGE, name="VT-d second stage, snooped", leaf_bits=(0, SNP, PS | SNP, PS | SNP))
"""The entries of a context that enforces coherent DMA.  Pointers to tables have no such bit."""
