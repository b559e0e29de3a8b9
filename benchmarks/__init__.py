# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast the test bed is: ``python -m benchmarks`` (``make bench``) measures and prints, one file a subject.

Not tests: how fast a machine is depends on who else uses it, so a missed bar is shown and nothing fails.
"""
