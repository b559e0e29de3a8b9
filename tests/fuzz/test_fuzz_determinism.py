# SPDX-License-Identifier: GPL-2.0-or-later
"""What was found once is found again, byte for byte, in any process: whatever the seed of Python's hashes."""

import os
import subprocess
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
STORIES = """
import sys
from fuzz.program import parse
from fuzz.run import story
for path in sys.argv[1:]:
    print(path, *story(parse(open(path).read())), sep="\\n")
"""


def output(seed, *command):
    """What a command prints under one seed of Python's hashes."""
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_a_program_tells_the_same_story_under_every_hash_seed():
    paths = [str(path) for path in sorted(CORPUS.glob("*.txt"))[::3]]
    assert len(paths) > 5
    told = {output(seed, "-c", STORIES, *paths) for seed in ("0", "1", "random")}
    assert len(told) == 1 and told.pop().count("\n") > 50


def filed(corpus):
    """Programs and stories of a campaign's findings, but for where and when they were found."""
    for path in sorted((corpus / "findings").glob("*/[ps]*.txt")):
        lines = path.read_text().replace(str(corpus), "").splitlines()
        yield path.relative_to(corpus), [line for line in lines if not line.startswith("First seen:")]


def test_a_campaign_of_so_many_operations_files_the_same_findings_under_every_hash_seed(tmp_path):
    found = []
    for seed in ("0", "1", "random"):
        corpus = tmp_path / seed
        words = ["fuzz", "--profile", "v7-fixed", "--backend", "vtd", "--defect", "F1", "--jobs", "1", "--seed", "1"]
        output(seed, "-m", "pviommu", *words, "--max-ops", "1200", "--time", "240", "--corpus", str(corpus))
        found.append(list(filed(corpus)))
    assert found[0] and found[0] == found[1] == found[2]
