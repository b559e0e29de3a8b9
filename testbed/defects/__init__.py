# SPDX-License-Identifier: GPL-2.0-or-later
"""Every defect happening: a short program of hypercalls that tells the hypervisor that has it from one that has not."""
