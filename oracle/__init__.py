# SPDX-License-Identifier: GPL-2.0-or-later
"""Independent judges of both halves of a backend.

An oracle is a hardware half that nobody here wrote: a model in another program, put behind the same registers and
the same RAM, so that our software half programs it without noticing, while our own hardware half reads the same
tables beside it.  What they answer is compared: the address that a DMA reaches, the fault that stops it, how long a
stale translation lives.  :mod:`oracle.catalogue` lists the oracles there are.
"""
