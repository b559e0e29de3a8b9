# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared virtual addressing looked at from outside: a machine for it, every store it makes, what has to hold."""
