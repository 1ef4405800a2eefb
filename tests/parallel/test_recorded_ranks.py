"""Ranks on a CPU: recorded steps with collectives among them give the tokens of one rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from chiplet import LLM, SamplingParams
from chiplet.worker import start
from tests.models.demo_model import PROMPTS
from tests.models.tiny import make_checkpoint
from tests.parallel.test_engine_of_ranks import config_of, run

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.mark.parametrize(("kind", "num_ranks"), [("llama-untied", 2), ("qwen3-moe", 2)])
def test_recorded_ranks_give_the_tokens_of_one(tmp_path: Path, kind: str, num_ranks: int) -> None:
    pytest.importorskip("chiplet_cpu")
    from chiplet_cpu import native

    make_checkpoint(kind, tmp_path)
    options = {"device": "cpu", "prepare_first": True}
    expected = run(*start(config_of(tmp_path, 1, **options)))
    engine, facts = start(config_of(tmp_path, num_ranks, **options))
    try:
        assert run(engine, facts) == expected
        served = {each["operation"]: each["provider"] for each in facts.plan["choices"]}
        assert served["communication/tp"] == (
            "shared-memory" if native.is_available() else "reference"
        )
        assert not any("not recorded" in line for line in facts.banner)
    finally:
        engine.close()


@pytest.mark.model
@pytest.mark.slow
def test_three_ranks_of_the_demo_model_give_the_tokens_of_one() -> None:
    options = {"device": "cpu", "dtype": "float32", "max_total_tokens": 2048}
    options["max_running_requests"] = 4
    answers = []
    for num_ranks in (1, 3):
        llm = LLM(tensor_parallel_size=num_ranks, use=("linear=native",), **options)
        with llm:
            found = llm.generate(PROMPTS[:2], GREEDY)
            answers.append([each.answers[0].token_ids for each in found])
    assert answers[0] == answers[1]
