from __future__ import annotations

import numpy as np
import pytest

from chiplet.errors import PromptTooLong, RequestError
from chiplet.request import RequestLimits, unfold
from chiplet.sampling_params import SamplingParams

LIMITS = RequestLimits(context_length=10, max_total_tokens=64, vocab_size=5, eos_token_ids=(2,))


def _ids(*token_ids: int) -> np.ndarray:
    return np.array(token_ids, dtype=np.int32)


def test_a_request_gets_what_the_context_leaves() -> None:
    request = LIMITS.request("a", _ids(1, 1, 1), SamplingParams(), seed=7, arrival_s=0.0)
    assert request.max_output_tokens == 7
    assert request.seed == 7
    assert request.end_token_ids == {2}


def test_a_given_seed_and_stop_tokens_stand() -> None:
    sampling = SamplingParams(seed=3, stop_token_ids=(4,), ignore_eos=True, max_tokens=2)
    request = LIMITS.request("a", _ids(1), sampling, seed=7, arrival_s=0.0)
    assert (request.seed, request.max_output_tokens) == (3, 2)
    assert request.end_token_ids == {4}


@pytest.mark.parametrize(
    ("prompt", "sampling", "param"),
    [
        (_ids(), SamplingParams(), "prompt"),
        (_ids(5), SamplingParams(), "prompt"),
        (_ids(-1), SamplingParams(), "prompt"),
        (_ids(1), SamplingParams(logit_bias={5: 1.0}), "logit_bias"),
        (_ids(1), SamplingParams(stop_token_ids=(9,)), "stop_token_ids"),
    ],
)
def test_bad_token_ids_are_refused(
    prompt: np.ndarray, sampling: SamplingParams, param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        LIMITS.check(prompt, sampling)
    assert caught.value.param == param


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(PromptTooLong, match=r"10 tokens.*10 and at least 1"):
        LIMITS.check(np.ones(10, dtype=np.int32), SamplingParams())
    with pytest.raises(PromptTooLong, match="4 and 7 more") as caught:
        LIMITS.check(np.ones(4, dtype=np.int32), SamplingParams(max_tokens=7))
    assert caught.value.param == "max_tokens"
    LIMITS.check(np.ones(4, dtype=np.int32), SamplingParams(max_tokens=6))


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (SamplingParams(min_tokens=10**6), "min_tokens"),
        (SamplingParams(logprobs=6), "logprobs"),
        (SamplingParams(prompt_logprobs=6), "prompt_logprobs"),
    ],
)
def test_wishes_beyond_the_model_are_refused(sampling: SamplingParams, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        LIMITS.check(_ids(1), sampling)
    assert caught.value.param == param


def test_answers_of_one_prompt_get_seeds_of_their_own() -> None:
    assert [each.seed for each in unfold(SamplingParams(n=3, seed=5))] == [5, 6, 7]
    assert all(each.n == 1 and each.seed is None for each in unfold(SamplingParams(n=2)))
