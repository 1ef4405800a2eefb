"""The demo model, in float32: greedy tokens equal Transformers', alone and together.

Activations are kept, by a pin: the products of whole numbers that serve by default round them.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import PreTrainedModel

from chiplet import LLM, SamplingParams
from tests.models.demo_model import PROMPTS, greedy_after, load_in_transformers

GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def transformers_model() -> PreTrainedModel:
    return load_in_transformers()


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(
        device="cpu",
        dtype="float32",
        max_total_tokens=16384,
        chunked_prefill_size=64,
        use=("linear=native",),
    )


def test_greedy_tokens_equal_transformers(llm: LLM, transformers_model: PreTrainedModel) -> None:
    together = llm.generate(PROMPTS, GREEDY)
    for completion in together:
        answer = completion.answers[0].token_ids
        assert len(answer) == 64
        assert list(answer) == greedy_after(transformers_model, completion.prompt_token_ids, answer)


def test_alone_equals_together(llm: LLM) -> None:
    together = llm.generate(PROMPTS[:8], GREEDY)
    for prompt, completion in zip(PROMPTS, together, strict=False):
        alone = llm.generate([prompt], GREEDY)[0]
        assert alone.answers[0].token_ids == completion.answers[0].token_ids


def test_a_question_is_answered(llm: LLM) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    params = SamplingParams(temperature=0, max_tokens=32)
    whole = llm.chat(question, params)
    assert "Paris" in whole.text
    assert whole.answers[0].finish_reason == "stop"
    streamed = list(llm.stream_chat(question, params))
    assert "".join(delta.text for delta in streamed) == whole.text
    assert streamed[-1].finish_reason == "stop"


def test_seeds_stop_strings_and_n(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=7, max_tokens=12, n=3)
    first, again = (llm.generate([PROMPTS[1]], params)[0] for _ in range(2))
    texts = [answer.text for answer in first.answers]
    assert texts == [answer.text for answer in again.answers]
    assert len(set(texts)) == 3
    crowd = llm.generate(PROMPTS[:6], params)
    assert texts == [answer.text for answer in crowd[1].answers]
    stopped = llm.generate(["1, 2, 3, 4,"], SamplingParams(temperature=0, stop=(" 7",)))[0]
    assert stopped.answers[0].finish_reason == "stop"
    assert " 6" in stopped.text
    assert " 7" not in stopped.text


MEASURE_LOADING = """
import re, sys
import psutil
from chiplet.assembly import assemble, load
from chiplet.config import EngineConfig
from chiplet.runner.reachable import reachable_tensors

def resident_bytes():
    return psutil.Process().memory_info().rss

def peak_bytes():
    # Of this program alone: what getrusage gives includes the process that started it.
    status = open("/proc/self/status").read()
    return int(re.search("VmHWM: *(\\\\d+) kB", status.replace("\\t", " "))[1]) * 1024

config = EngineConfig.from_options(device="cpu", dtype=sys.argv[1], max_total_tokens=1024)
parts = assemble(config)
before = resident_bytes()
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
load(parts)
stays = resident_bytes() - before
# Packed by a library a tensor has no address, and the size of what was packed.
held = {
    id(each) if each.is_mkldnn else each.data_ptr(): each.numel() * each.element_size()
    for each in reachable_tensors(parts.model)
}
print(peak_bytes() - before, stays, sum(held.values()))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_little_more_memory_than_the_file(dtype: str) -> None:
    command = [sys.executable, "-c", MEASURE_LOADING, dtype]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak_bytes, stays_bytes, held_bytes = map(int, printed.split())
    # 98.4 MB, of which 1.8 are header and vocabulary; rotary angles of 8,192 positions, 2.1 MB.
    assert held_bytes < 1.02 * 98.4e6
    assert stays_bytes < 1.2 * 98.4e6
    # At its largest, the head is there in both forms: 31 MB. No lower limit, and no comparison with
    # what stays: the system may take back pages of libraries meanwhile.
    assert peak_bytes < 1.4 * held_bytes
