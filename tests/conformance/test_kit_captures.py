"""The kit catches captures that are wrong in one way each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chiplet.api import BuildContext, Captured, Dtype
from chiplet.reference.attention import PlainAttention
from chiplet.reference.platform import ReferencePlatform
from chiplet.testing.conformance.attention_captures import check_capture
from chiplet.testing.conformance.attention_cases import SHAPES, attention_request
from chiplet.testing.conformance.attention_inputs import AttentionCase
from tests.conformance.wrong_providers import Wrong

CASE = AttentionCase("mixed", (1, 1, 9), (77, 12, 30))
REQUEST = replace(attention_request(SHAPES[0], Dtype.FLOAT32), num_captured=5)

SPOILT = {
    "named twice": lambda found: found._replace(
        tokens=found.tokens[..., :1].expand_as(found.tokens)
    ),
    "not seen": lambda found: found._replace(tokens=found.tokens + 60),
    "weights differ": lambda found: found._replace(weights=found.weights * 1.01),
    "missing, or out of order": lambda found: Captured(*(each.flip(-1) for each in found)),
    "too few": lambda found: found._replace(tokens=torch.full_like(found.tokens, -1)),
    "type": lambda found: found._replace(weights=found.weights.half()),
    "shape": lambda found: Captured(*(each[..., :4] for each in found)),
}


def test_the_reference_passes():
    assert check_capture(Wrong(PlainAttention), REQUEST, BuildContext(ReferencePlatform()), CASE)


@pytest.mark.parametrize("said", SPOILT)
def test_what_is_spoilt_is_caught(said):
    class Spoilt(PlainAttention):
        def capture(self, q, kv, plan, sinks):
            found = super().capture(q, kv, plan, sinks)
            return SPOILT[said](found)

    with pytest.raises(AssertionError, match=said):
        check_capture(Wrong(Spoilt), REQUEST, BuildContext(ReferencePlatform()), CASE)


def test_a_window_that_is_ignored_is_caught():
    class SeesAll(PlainAttention):
        def __init__(self, request):
            super().__init__(replace(request, window=None))

    request = replace(REQUEST, window=20)
    with pytest.raises(AssertionError, match=r"not seen|too few"):
        check_capture(Wrong(SeesAll), request, BuildContext(ReferencePlatform()), CASE)
