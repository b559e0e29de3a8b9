# SPDX-License-Identifier: GPL-2.0-or-later
"""IOMMU units: the hardware halves of the translation backends.

Each is written from its own specification and shares no declaration with the software half in ``hypervisor``.
"""
