# SPDX-License-Identifier: GPL-2.0-or-later
"""IOMMU contexts of a domain, free of any vendor: what they are, where their tables come from, who is in them."""
