# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's side: domains, their memory, the ``iommu_op`` hypercall and the drivers that write the tables.

The way in is :meth:`hypervisor.xen.Xen.hypercall`; the way out is bytes of physical memory, register accesses
and invalidation queues.  The hardware model behind them is never imported.

Return values follow Xen: 0 or a positive count, or a negative errno.  :class:`hypervisor.errors.XenBug` stands
where Xen would stop the host; nobody in here catches it.
"""
