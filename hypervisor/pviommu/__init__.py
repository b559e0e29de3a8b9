# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``iommu_op`` hypercall: the table of sub-ops, the steps common to all, and one short handler per sub-op."""
