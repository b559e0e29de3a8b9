# SPDX-License-Identifier: GPL-2.0-or-later
"""What five mailing-list threads argue about, as runs: each step with its answer and the state after it."""
