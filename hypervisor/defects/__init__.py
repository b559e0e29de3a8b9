# SPDX-License-Identifier: GPL-2.0-or-later
"""What was wrong with posted hypervisors, as data: one entry each, one small function that brings it back.

A defect is applied to an assembled :class:`hypervisor.xen.Xen` before it has domains; Xen itself knows nothing of it.
Ids A to H and T are those of the catalogue of posted code, R what a running RFC v3 showed, and S are posted rules that
are no fault by themselves but decide what others do (when tables are taken and returned, which domain ids are used).
"""
