# SPDX-License-Identifier: GPL-2.0-or-later
"""Records of what a running Xen answered, call by call, and replaying them on an emulated one."""
