"""The CPU plugin serves what it served before."""

from __future__ import annotations

import pytest

from chiplet_cpu import native
from tests.conformance.supported import ANY, committed, promised_by_set

pytestmark = pytest.mark.skipif(not native.is_available(), reason=native.explanation())


@pytest.fixture(scope="module")
def by_set():
    return promised_by_set()


def test_nothing_that_was_served_is_lost(by_set):
    best = by_set[native.instruction_sets()[-1]]
    lost = sorted(frozenset().union(*committed().values()) - best)
    assert not lost, "no longer served; if that is meant, run 'make supported': " + "; ".join(lost)


def test_lesser_instruction_sets_keep_what_is_theirs(by_set):
    wanted: set[str] = set()
    for name, keys in by_set.items():
        wanted |= committed().get(name, frozenset())
        lost = sorted((committed()[ANY] | wanted) - keys)
        # oneDNN looks at the processor, whatever kernels of our own are limited to.
        assert not lost, f"{name}: {'; '.join(lost)}"
