# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs written down for other places than this emulator."""
