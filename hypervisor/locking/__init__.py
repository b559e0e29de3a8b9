# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's locks and the named places where another vCPU may run, put onto an assembled hypervisor on demand.

Handlers do not mention locks: one pass of a sub-op is one critical section, and which locks it holds is a row of
:mod:`hypervisor.locking.guards`.  An emulator with one vCPU needs none of them, so until somebody installs them they
cost nothing.
"""
