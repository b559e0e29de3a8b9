# SPDX-License-Identifier: GPL-2.0-or-later
"""How Hypothesis runs here: ``pr`` always, ``nightly`` with ``HYPOTHESIS_PROFILE=nightly`` in the environment.

Both look for something new in every run; Hypothesis's own ``ci`` profile repeats the same examples for ever.  There is
no deadline: how long an example takes says how busy the machine is.
"""

import os

from hypothesis import settings

settings.register_profile("pr", deadline=None, print_blob=True)
settings.register_profile("nightly", deadline=None, print_blob=True, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pr"))
