# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs that open /dev/iommu, served by the Python iommufd: no kernel module, no root.

The program runs under a seccomp filter that hands the calls which matter to a supervisor, this process.  ``seccomp``
speaks to the kernel, ``memory`` is the program's memory with its pins, ``files`` what its descriptors stand for,
``machine`` the emulated devices, ``server`` the loop.
"""
