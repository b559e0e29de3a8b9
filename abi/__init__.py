# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract between hypervisor and guest, as data.

``versions`` is the registry of every posted ABI; ``codec`` turns its structs into ints and back; ``errno`` names
Xen's error numbers; ``semantics`` says what each sub-op does.  Imports nothing but ``base``.
"""
