"""The same step compiled by torch_xla, on its CPU backend; `make test-xla` runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

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
PATIENCE_S = 600
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


@pytest.mark.timeout(PATIENCE_S + 20)
def test_the_cache_is_written_in_place(tmp_path):
    """torch_xla donates what a graph updates; XLA's own text of the programs says so."""
    make_folder(tmp_path)
    programs = tmp_path / "programs"
    flags = f"{os.environ['XLA_FLAGS']} --xla_dump_to={programs} --xla_dump_hlo_as_text"
    child = subprocess.run(
        [sys.executable, "-m", "tests.tpu.xla_child", tmp_path],
        env=os.environ | {"XLA_FLAGS": flags},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    facts = json.loads(child.stdout)
    kv = {"f32[{},{},{},{}]".format(*shape) for shape in facts["kv"]}
    steps = []
    for path in programs.glob("*after_optimizations.txt"):
        with path.open() as text:
            parameters, aliased = arguments_of(text.readline())
        pages = {index for index, shape in enumerate(parameters) if shape in kv}
        if len(pages) == len(facts["kv"]):
            steps.append(path.name)
            assert pages <= aliased, path.name
    assert len(steps) == facts["programs"]


def arguments_of(header):
    """Shapes of a program's arguments, and which of them a result takes the place of."""
    layout = re.search(r"entry_computation_layout=\{\((.*?)\)->", header)[1]
    aliases = re.search(r"input_output_alias=\{(.*?)\}, \w+=", header)
    aliased = re.findall(r"\((\d+), \{\}", aliases[1]) if aliases else []
    return re.findall(r"\w+\[[\d,]*\]", layout), set(map(int, aliased))


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
