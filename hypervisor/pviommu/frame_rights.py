# SPDX-License-Identifier: GPL-2.0-or-later
"""May this domain let devices reach these frames, and what reference does that take?"""

from typing import Final

from abi.errno import EPERM
from hypervisor.domain import Domain
from hypervisor.frames import DOMID_IO, DOMID_NONE, DOMID_XEN, REF, WRITABLE_REF, FrameTable
from hypervisor.p2m import IS_OTHERS, IS_RAM, IS_READ_ONLY, MMIO, RAM_PAGED
from hypervisor.profile import Profile
from hypervisor.words import alike

_NOBODY_TO_ASK: Final = frozenset({DOMID_IO, DOMID_XEN, DOMID_NONE})


def frame_rights(
    profile: Profile, frames: FrameTable, domain: Domain, gfn: int, limit: int, write: bool
) -> tuple[int, int, int, int]:
    """Decide about the domain's frames from ``gfn`` on, ``limit`` of them at most.

    Returns (machine frame, how many from there may be mapped, the reference to take on each, errno of the first if it
    may not).  The reference is 0 for MMIO, which has no page to refer to.
    """
    mfn, kind, count = domain.translation.run(gfn, limit)
    if not IS_RAM[kind]:
        if kind == MMIO:
            if profile.maps_mmio and domain.may_access_mmio(mfn, 1):
                while not domain.may_access_mmio(mfn, count):
                    count = count + 1 >> 1
                return mfn, count, 0, 0
            return mfn, 0, 0, -EPERM
        if kind == RAM_PAGED:
            return mfn, 0, 0, -profile.errno_paged_out
        return mfn, 0, 0, -profile.errno_hole
    if write and IS_READ_ONLY[kind]:
        return mfn, 0, 0, -EPERM
    if mfn >= frames.frames:
        return mfn, 0, 0, -EPERM
    owner = frames.owner[mfn]
    if owner != domain.domid:
        others = profile.maps_foreign and domain.hardware and (domain.pv or IS_OTHERS[kind])
        if not others or owner in _NOBODY_TO_ASK:
            return mfn, 0, 0, -EPERM
    if count > 1:
        count = alike(frames.owner, mfn, count)
    if not (domain.pv and write):
        return mfn, count, REF, 0
    if frames.pagetable[mfn]:
        return mfn, 0, 0, -EPERM
    if count > 1:
        table = frames.pagetable.find(1, mfn, mfn + count)
        if table >= 0:
            count = table - mfn
    return mfn, count, WRITABLE_REF, 0
