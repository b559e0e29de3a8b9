# SPDX-License-Identifier: GPL-2.0-or-later
"""The hardware: RAM, MMIO, PCI, message interrupts, DMA masters and the IOMMUs between them.

Nothing here has heard of hypercalls, domains or Linux.  Software (the hypervisor, the guest) meets it in three
places only: bytes of physical memory, register accesses, and message interrupts.  Hardware never raises on
what software wrote: every decode is total and what goes wrong is reported the way the manual says.
"""
