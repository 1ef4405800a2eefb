"""The same step compiled by torch_xla, on its CPU backend; `make test-xla` runs it."""

import pytest

pytest.importorskip("torch_xla", reason="torch_xla is not installed; run 'make test-xla'")

import torch

from chiplet import LLM, SamplingParams
from chiplet.config import EngineConfig
from chiplet.worker import explain
from tests.tpu.engines import (
    EMULATED,
    make_folder,
    random_prompts,
    serve,
    serve_on_cpu,
    start_engine,
)

GREEDY = SamplingParams(temperature=0, max_tokens=12)
SAMPLINGS = [
    GREEDY,
    SamplingParams(temperature=0, frequency_penalty=1.5, presence_penalty=0.5, max_tokens=9),
    SamplingParams(temperature=0.8, top_k=8, top_p=0.9, seed=4, max_tokens=9),
]
PROMPTS = ["The capital of France is", "1, 1, 2, 3, 5, 8,"]


def test_answers_are_those_of_the_cpu_plugin(tmp_path):
    folder, prompts = make_folder(tmp_path), random_prompts(6, 90)
    expected = serve_on_cpu(folder, prompts, SAMPLINGS * 2)
    engine, facts = start_engine(folder, **EMULATED)
    assert serve(engine, facts, prompts, SAMPLINGS * 2) == expected


def test_the_choice_is_explained(tmp_path):
    folder = make_folder(tmp_path)
    options = {"model": str(folder), "load_format": "dummy", "device": "tpu", "emulate": True}
    plan = explain(EngineConfig.from_options(**options))
    (choice,) = (each for each in plan.choices if each.operation == "compilation/step")
    assert choice.server.provider == "torch_xla"
    assert torch.__version__.startswith("2.9")
    assert any(
        each.provider == "jax" and "not installed" in each.reasons[0] for each in choice.rejections
    )


@pytest.mark.model
def test_the_demo_model_is_served():
    options = {
        "dtype": "float32",
        "context_length": 128,
        "max_running_requests": 8,
        "chunked_prefill_size": 56,
        "max_total_tokens": 1024,
    }
    llm = LLM(device="tpu", emulate=True, **options)
    texts = [each.text for each in llm.generate(PROMPTS, GREEDY)]
    assert "Paris" in texts[0]
    assert "13" in texts[1]
