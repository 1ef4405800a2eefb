"""Requests for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chiplet.request import Request
from chiplet.sampling_params import SamplingParams


def make_request(
    request_id: str,
    prompt: Sequence[int],
    sampling: SamplingParams | None = None,
    *,
    end_token_ids: Sequence[int] = (),
) -> Request:
    """A request as the server would make it; one greedy token unless `sampling` says more."""
    return Request(
        request_id=request_id,
        prompt_token_ids=np.asarray(prompt, dtype=np.int32),
        sampling=sampling or SamplingParams(temperature=0.0, max_tokens=1),
        end_token_ids=frozenset(end_token_ids),
        seed=0,
        arrival_s=0.0,
    )
