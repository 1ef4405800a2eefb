"""Engines on tiny random models, fed with token ids, for the tests of this folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from chiplet.config import EngineConfig
from chiplet.engine import Engine
from chiplet.sampling_params import SamplingParams
from chiplet.worker import EngineFacts, start

VOCAB_SIZE = 301
"""No multiple of anything."""

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}

EMULATED = {"device": "tpu", "emulate": True, "prepare_first": True}


def make_folder(folder: Path, **changes: Any) -> Path:
    """A checkpoint folder with a config alone."""
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    return folder


def start_engine(folder: Path, **options: Any) -> tuple[Engine, EngineFacts]:
    """An engine with reproducible random weights, the same on every device."""
    defaults = {
        "model": str(folder),
        "load_format": "dummy",
        "dtype": "float32",
        "context_length": 128,
        "max_running_requests": 8,
        "chunked_prefill_size": 56,
        "max_total_tokens": 1024,
    }
    return start(EngineConfig.from_options(**(defaults | options)))


def serve(
    engine: Engine, facts: EngineFacts, prompts: list[list[int]], params: list[SamplingParams]
) -> list[list[int]]:
    """Answers to prompts of token ids, all at once."""
    answers: dict[str, list[int]] = {}
    for index, (prompt, sampling) in enumerate(zip(prompts, params, strict=True)):
        array = np.array(prompt, dtype=np.int32)
        facts.limits.check(array, sampling)
        request = facts.limits.request(
            f"r{index}", array, sampling, seed=0, arrival_s=time.monotonic()
        )
        engine.add(request)
        answers[f"r{index}"] = []
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            answers[output.request_id] += output.token_ids
    return list(answers.values())


def random_prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Prompts of random tokens and lengths."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    return [random.integers(2, VOCAB_SIZE, each).tolist() for each in lengths]


def on_cpu(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own: torchax changes torch for good."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def serve_on_cpu(
    folder: Path, prompts: list[list[int]], params: list[SamplingParams], **options: Any
) -> list[list[int]]:
    """What the CPU plugin answers."""
    return on_cpu(_serve_on_cpu, folder, prompts, params, options)


def _serve_on_cpu(
    folder: Path,
    prompts: list[list[int]],
    params: list[SamplingParams],
    options: dict[str, Any],
) -> list[list[int]]:
    return serve(*start_engine(folder, device="cpu", **options), prompts, params)
