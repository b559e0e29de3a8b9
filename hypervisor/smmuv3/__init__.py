# SPDX-License-Identifier: GPL-2.0-or-later
"""The SMMUv3 driver: how this hypervisor uses Arm's System MMU, written from the specification (Arm IHI 0070).

``layouts`` says what words look like, ``format`` what page-table entries look like, ``geometry`` how deep trees
are; ``queue``, ``streams`` and ``events`` own one in-memory structure each; ``unit`` is one SMMU; ``driver`` is the
backend that contexts and devices see.  Section numbers are those of IHI 0070; "Xen" is xen/drivers/passthrough/arm.
"""
