# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared virtual addressing: devices that use a process's own page tables under a PASID."""
