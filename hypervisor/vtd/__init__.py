# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's VT-d driver: the software half of the backend, in legacy mode with queued invalidation.

Written from the Intel VT-d specification and from what Xen was seen to do; it shares no declaration with any model
of the hardware.
"""
