# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables: one radix algorithm for all vendors; a format is one small file beside its driver.

Words used throughout (levels count as in the VT-d manual, Arm's level is 4 minus ours):

* *entry*: one 64-bit word of a table; all-zero is an *empty* entry.
* *table entry* points at the next lower table; *leaf* translates.  Level 1 leaves cover 4 KiB (order 0),
  level 2 leaves 2 MiB (order 9), level 3 leaves 1 GiB (order 18).
* *fold*: replace a full table of consecutive leaves by one leaf a level up.  *split*: the reverse.
"""
