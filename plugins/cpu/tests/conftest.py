"""Fixtures: every instruction set that this processor runs, and one or several threads."""

import pytest

from chiplet_cpu import native


@pytest.fixture(params=native.instruction_sets() if native.is_available() else ())
def isa(request):
    before = native.instruction_set()
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(before)


@pytest.fixture(params=[1, 3])
def threads(request):
    native.set_threads(request.param)
    yield request.param
    native.set_threads(1)
