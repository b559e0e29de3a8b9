# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the Linux kernel that an IOMMU driver meets, one small module for each kernel file."""
