# SPDX-License-Identifier: GPL-2.0-or-later
"""Golden words of a real Xen need no model to be installed: they are always checked."""

import json
import subprocess
import sys


def test_our_drivers_write_the_words_that_a_real_xen_wrote():
    done = subprocess.run(
        [sys.executable, "-m", "pviommu", "oracle", "run", "golden", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)


def test_an_unknown_oracle_is_one_line_and_status_2():
    done = subprocess.run(
        [sys.executable, "-m", "pviommu", "oracle", "run", "delphi"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
