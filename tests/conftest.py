# SPDX-License-Identifier: GPL-2.0-or-later
"""How Hypothesis runs here, and what programs under test inherit.

Profiles, chosen by ``HYPOTHESIS_PROFILE`` in the environment: ``pr``, the default, and ``nightly`` look for something
new in every run; ``fixed`` takes the same examples every time, so that CI fails by what a commit changes and not by
chance.  None has a deadline or minds slow examples: how long one takes says how busy the machine is.
"""

import os
import signal

from hypothesis import HealthCheck, settings

settings.register_profile("pr", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", settings.get_profile("pr"), max_examples=2000)
settings.register_profile("fixed", settings.get_profile("pr"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pr"))


def pytest_configure(config):
    """Interrupts are ignored in a background job; programs that tests start would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
