# SPDX-License-Identifier: GPL-2.0-or-later
"""DMA masters, one per file: a copier, a network card and an adversary.

Each is a function with one 4 KiB BAR of 32-bit registers that reaches memory through a
:class:`machine.dma.DmaPort` alone, so whatever stands between it and memory has its say on every access.
"""
