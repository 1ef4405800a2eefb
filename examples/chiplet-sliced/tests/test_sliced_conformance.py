"""The kit's quick tier on the provider and its package."""

from __future__ import annotations

import pytest


@pytest.mark.conformance(device="reference", provider="sliced", quick=True)
def test_conformance(conformance) -> None:
    conformance.check()
