# SPDX-License-Identifier: GPL-2.0-or-later
"""Number spaces and bit fields: what every other layer counts and masks with.

Standard library only.  Nothing here knows what an IOMMU is.
"""
