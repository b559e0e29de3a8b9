# SPDX-License-Identifier: GPL-2.0-or-later
"""Conformance suites: what every implementation of a seam must do, checked without a test framework.

One suite for entry formats, one for hardware halves, one for software halves, one for pairs of both; ``iommufd`` has
one for iommufd over any driver.  A suite is a table of *clauses*: named functions with their claim as prose that return
nothing, or raise :class:`ConformanceError`.  A newcomer's backend proves itself in three lines::

    from testbed.conformance import check_backend

    for result in check_backend(MY_BACKEND):
        print(result)
"""

from collections.abc import Iterator

from testbed.backends import TranslationBackend
from testbed.conformance.clause import Clause, ConformanceError, Result
from testbed.conformance.formats import FORMAT_CLAUSES
from testbed.conformance.hardware import HARDWARE_CLAUSES
from testbed.conformance.pair import PAIR_CLAUSES
from testbed.conformance.rig import Elsewhere, Rig
from testbed.conformance.software import SOFTWARE_CLAUSES

SUITES = {
    "format": FORMAT_CLAUSES,
    "hardware": HARDWARE_CLAUSES,
    "software": SOFTWARE_CLAUSES,
    "pair": PAIR_CLAUSES,
}
"""By name: the clauses of each suite, in the order in which they run."""

__all__ = ["SUITES", "ConformanceError", "Elsewhere", "Result", "check_backend"]


def check_backend(backend: TranslationBackend, *suites: str, elsewhere: Elsewhere | None = None) -> Iterator[Result]:
    """Run the suites (all, or those named) over ``backend``, each clause on a machine of its own.

    ``elsewhere``: its hardware half lives in a machine that somebody else runs.  ``ValueError`` for a suite that there
    is none of.
    """
    unknown = [name for name in suites if name not in SUITES]
    if unknown:
        raise ValueError(f"unknown suite {unknown[0]!r}; there are: {', '.join(SUITES)}")
    exempt = elsewhere.exempt if elsewhere is not None else {}
    for suite in suites or SUITES:
        for clause in SUITES[suite]:
            if clause.__name__ in exempt:
                yield Result(suite, clause.__name__, None, exempt[clause.__name__])
            else:
                yield Result(suite, clause.__name__, _ask(clause, Rig(backend, elsewhere)))


def _ask(clause: Clause, rig: Rig) -> str | None:
    """How the subject fails a clause; ``None`` if it does not."""
    try:
        clause(rig)
    except ConformanceError as error:
        return str(error)
    except Exception as error:  # the subject raised: it fails the clause, and the others are still asked
        return f"raised {type(error).__name__}: {error}"
    finally:
        rig.close()
    return None
