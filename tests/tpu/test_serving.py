"""The demo model through the TPU plugin on XLA's CPU backend; `make test-tpu` runs it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("torchax", reason="torchax is not installed; run 'make test-tpu'")

from chiplet import LLM, SamplingParams
from tests.tpu.engines import on_cpu

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "The three laws of thermodynamics are",
    "In 1969, Apollo 11",
    "To make bread you need",
    "Dear Sir or Madam,",
    "The square root of 144 is",
    "Q: Who wrote Hamlet?\nA:",
    "1, 1, 2, 3, 5, 8,",
]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
OPTIONS = {
    "dtype": "float32",
    "context_length": 256,
    "max_running_requests": 8,
    "chunked_prefill_size": 56,
    "max_total_tokens": 2048,
}

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(900)]


def answers_of(llm):
    return [list(each.answers[0].token_ids) for each in llm.generate(PROMPTS, GREEDY)]


def answers_of_the_cpu():
    # Activations are kept, by a pin: what serves by default rounds them to eight bits.
    return answers_of(LLM(device="cpu", use=("linear=native",), **OPTIONS))


@pytest.fixture(scope="module")
def expected():
    return on_cpu(answers_of_the_cpu)


# The model has three key heads: three devices share them, four could not.
@pytest.mark.parametrize("ranks", [1, 3])
def test_greedy_tokens_are_those_of_the_cpu_plugin(expected, ranks):
    llm = LLM(device="tpu", emulate=True, tensor_parallel_size=ranks, **OPTIONS)
    assert answers_of(llm) == expected
    assert [len(each) for each in expected] == [24] * len(PROMPTS)


@pytest.fixture(scope="module")
def server():
    """Address of `chiplet serve` on the emulated device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    process = subprocess.Popen(
        [
            *(Path(sys.executable).with_name("chiplet"), "serve", "smollm2-135m"),
            *("--device", "tpu", "--emulate", "--port", str(port), *flags),
        ],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 600
        while not is_ready(address):
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=30)


def is_ready(address):
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def post(address, body):
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps({"model": "smollm2-135m", "temperature": 0} | body).encode(),
        {"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=600)


def test_an_answer_streams_over_http(server):
    with post(server, {"prompt": PROMPTS[0], "max_tokens": 12, "stream": True}) as answer:
        lines = [line.decode().strip() for line in answer if line.strip()]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    pieces = [each["choices"][0]["text"] for each in events if each["choices"]]
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 3, "it came in one piece"


def test_a_shared_prefix_comes_from_the_cache(server):
    prefix = "A tale of a ship that sailed around the world and never came home again. " * 5
    cached = []
    for ending in ("Chapter one", "Chapter two"):
        with post(server, {"prompt": prefix + ending, "max_tokens": 2}) as answer:
            usage = json.load(answer)["usage"]
        cached.append((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0))
    assert cached[0] == 0
    assert cached[1] >= 64
