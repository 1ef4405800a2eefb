"""Caches in eight bits, through the whole engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chiplet import SamplingParams
from chiplet.api import KvCoding
from chiplet.config import EngineConfig
from tests.models.tiny import VOCAB_SIZE, make_checkpoint, run_engine

PROMPTS = [np.random.default_rng(size).integers(2, VOCAB_SIZE, size).tolist() for size in (30, 41)]
SAMPLING = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, prompt_logprobs=VOCAB_SIZE)


def distributions(folder: Path, device: str, coding: str) -> np.ndarray:
    config = EngineConfig.from_options(
        model=str(folder),
        device=device,
        dtype="float32",
        kv_cache_dtype=coding,
        chunked_prefill_size=16,
        max_total_tokens=512,
        context_length=128,
    )
    results = run_engine(config, PROMPTS, [SAMPLING] * len(PROMPTS))
    return np.exp(np.concatenate([each.prompt_logprobs for each in results]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistral")
    make_checkpoint("mistral", folder)
    return folder


@pytest.mark.parametrize("coding", list(KvCoding))
def test_kernels_and_reference_agree_on_a_coded_cache(folder: Path, coding: str):
    plain = distributions(folder, "cpu", "float32")
    coded = distributions(folder, "cpu", coding)
    reference = distributions(folder, "reference", coding)
    loss = np.abs(coded - plain).max()
    assert np.abs(coded - reference).max() < loss / 10
    assert 1e-5 < loss < 0.3
