# SPDX-License-Identifier: GPL-2.0-or-later
"""iommufd: I/O address spaces that user space manages, over any driver of the IOMMU core (drivers/iommu/iommufd)."""
