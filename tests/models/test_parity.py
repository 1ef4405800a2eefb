"""Logits of random small models equal Transformers', however the work is cut up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from chiplet.config import EngineConfig
from chiplet.sampling_params import SamplingParams
from tests.models.tiny import KINDS, VOCAB_SIZE, make_checkpoint, run_engine

TOLERANCE = 2e-4


def _config(folder: Path, **options: object) -> EngineConfig:
    defaults = {"model": str(folder), "dtype": "float32", "max_total_tokens": 8192}
    return EngineConfig.from_options(**(defaults | options))


def _prompts(num: int, length: int) -> list[list[int]]:
    rng = np.random.default_rng(num)
    lengths = rng.integers(1, length + 1, num)
    lengths[0] = length
    return [rng.integers(2, VOCAB_SIZE, size).tolist() for size in lengths]


@torch.no_grad()
def _expected(model: torch.nn.Module, token_ids: list[int]) -> np.ndarray:
    logits = model(torch.tensor([token_ids])).logits[0]
    return torch.log_softmax(logits.double(), dim=-1).numpy()


@pytest.fixture(scope="module", params=sorted(KINDS))
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, make_checkpoint(request.param, folder)


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_every_family_agrees_at_every_position(
    checkpoint: tuple[Path, torch.nn.Module], device: str
) -> None:
    folder, model = checkpoint
    prompts = _prompts(3, 60)
    sampling = SamplingParams(
        temperature=0, max_tokens=8, ignore_eos=True, logprobs=32, prompt_logprobs=32
    )
    config = _config(folder, device=device, chunked_prefill_size=7)
    for prompt, got in zip(prompts, run_engine(config, prompts, [sampling] * 3), strict=True):
        expected = _expected(model, prompt + got.token_ids)
        assert got.token_ids == expected[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert len(got.token_ids) == 8
        np.testing.assert_allclose(got.prompt_logprobs, expected[: len(prompt) - 1], atol=TOLERANCE)
        np.testing.assert_allclose(got.logprobs, expected[len(prompt) - 1 : -1], atol=TOLERANCE)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, make_checkpoint("llama3-rope", folder)


@pytest.mark.parametrize(
    ("num_requests", "chunk"),
    [
        (1, 1),
        (1, 7),
        (1, 64),
        (1, 4096),
        pytest.param(32, 1, marks=pytest.mark.slow),
        pytest.param(32, 7, marks=pytest.mark.slow),
        (32, 64),
        (32, 4096),
    ],
)
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("radix_cache", [True, False])
def test_however_the_work_is_cut_up(
    llama: tuple[Path, torch.nn.Module],
    chunk: int,
    page_size: int,
    radix_cache: bool,
    num_requests: int,
) -> None:
    folder, model = llama
    shared = _prompts(1, 40)[0]
    prompts = [shared + prompt for prompt in _prompts(num_requests, 90)]
    sampling = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=32)
    config = _config(
        folder,
        device="cpu",
        chunked_prefill_size=chunk,
        page_size=page_size,
        radix_cache=radix_cache,
    )
    for prompt, got in zip(
        prompts, run_engine(config, prompts, [sampling] * num_requests), strict=True
    ):
        expected = _expected(model, prompt + got.token_ids)[len(prompt) - 1 : -1]
        np.testing.assert_allclose(got.logprobs, expected, atol=TOLERANCE)
        assert got.token_ids == got.logprobs.argmax(-1).tolist()
