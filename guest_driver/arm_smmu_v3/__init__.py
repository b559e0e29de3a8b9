# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's driver of an SMMUv3 with stage 1: stream table, context descriptors, PASIDs, shared address spaces."""
