# SPDX-License-Identifier: GPL-2.0-or-later
"""What was wrong with posted drivers, as data: one entry each, one small function that brings it back.

A defect is applied to the reference driver when the guest boots; the driver itself knows nothing of it.  Ids are those
of the project's notes: ``K*`` the list of driver faults, ``L1.2-*`` the review of RFC v3 and what was built on it,
``L8.*`` faults of the IOMMU core that a driver meets.
"""
