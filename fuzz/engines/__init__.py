# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways of choosing the next program."""
