# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the parts meet: machine, hypervisor, guest and devices wired together, and what is run on them.

:func:`testbed.build.build` is the composition root; :mod:`testbed.backends` is the one place that names a software
half and a hardware half together.
"""
