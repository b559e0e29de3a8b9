# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest network stack just big enough to ping and be pinged."""
