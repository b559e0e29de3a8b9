# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign's directory as one page for people and one file for machines.

Needs the optional extra ``report`` (plotly, jinja2, junitparser).
"""
