# SPDX-License-Identifier: GPL-2.0-or-later
"""Driver validation: a driver is taken through its life against a profile, and what does not hold is reported.

``program`` is the language of calls, ``world`` runs them, ``faults`` makes hypercalls fail on demand,
``scenarios`` says what is tried, ``validate`` runs it all, shrinks failures and names the defect behind each.
"""
