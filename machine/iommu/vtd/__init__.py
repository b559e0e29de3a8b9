# SPDX-License-Identifier: GPL-2.0-or-later
"""The Intel VT-d unit, one file per chapter of the specification.

``config`` (what CAP and ECAP report), ``registers``, ``reasons`` and ``faults``, ``visibility`` (what the walker sees
of memory), ``invalidation`` and ``queue``, ``device_tlb``, ``unit`` (all of it assembled).
Legacy mode: ``tables`` (root and context), ``walk`` (second level), ``legacy``, ``explain`` (a walk for people).
Scalable mode: ``scalable_tables``, ``first_stage``, ``second_stage``, ``scalable``, ``scalable_invalidation``,
``explain_scalable``.
"""
