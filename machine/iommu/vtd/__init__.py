# SPDX-License-Identifier: GPL-2.0-or-later
"""The Intel VT-d unit, one file per chapter of the specification.

``config`` (what CAP and ECAP report), ``registers``, ``tables`` (root and context), ``walk`` (second level),
``invalidation`` and ``queue``, ``faults``, ``explain`` (a walk for people), ``unit`` (all of it assembled).
"""
