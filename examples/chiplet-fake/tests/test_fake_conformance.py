"""The kit's quick tier on the platform, its package, and the reference on it."""

from __future__ import annotations

import pytest


@pytest.mark.conformance(device="fake", plugins=["chiplet-fake"], quick=True)
def test_conformance(conformance) -> None:
    conformance.check()
