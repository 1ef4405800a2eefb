"""Whole steps compiled by jax on XLA's CPU backend, on a tiny model."""

from contextlib import contextmanager

import pytest

pytest.importorskip("torchax", reason="torchax is not installed; run 'make test-tpu'")

import jax

from chiplet.sampling_params import SamplingParams
from tests.tpu.engines import (
    EMULATED,
    make_folder,
    random_prompts,
    serve,
    serve_on_cpu,
    start_engine,
)

SAMPLINGS = [
    SamplingParams(temperature=0, max_tokens=12),
    SamplingParams(temperature=0, frequency_penalty=1.5, presence_penalty=0.5, max_tokens=14),
    SamplingParams(temperature=0.8, top_k=8, top_p=0.9, seed=4, max_tokens=9),
    SamplingParams(temperature=0, repetition_penalty=1.4, logit_bias={5: 4.0}, max_tokens=8),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prompts():
    return random_prompts(12, 90)


@pytest.fixture(scope="module")
def expected(folder, prompts):
    return serve_on_cpu(folder, prompts, SAMPLINGS * 3)


def test_answers_are_those_of_the_cpu_plugin(folder, prompts, expected):
    assert serve(*start_engine(folder, **EMULATED), prompts, SAMPLINGS * 3) == expected


def test_four_devices_answer_as_one(folder, prompts, expected):
    engine, facts = start_engine(folder, tensor_parallel_size=4, **EMULATED)
    assert serve(engine, facts, prompts, SAMPLINGS * 3) == expected


@pytest.fixture(scope="module")
def emulated(folder):
    return start_engine(folder, **EMULATED)


def executables_of(engine):
    return engine._runner._executables


def test_a_program_per_bucket_and_none_more(emulated):
    engine, facts = emulated
    buckets = executables_of(engine)._to_prepare
    compiler = executables_of(engine)._platform.compiler
    assert compiler.num_compilations == len(buckets) == len(executables_of(engine)._ready)
    prompts = random_prompts(200, 100, seed=1)
    # A first round, so that writing a row of each table is compiled too.
    serve(engine, facts, prompts[:8], SAMPLINGS * 2)
    with count_compilations() as compiled:
        serve(engine, facts, prompts, SAMPLINGS * 50)
    assert compiler.num_compilations == len(buckets)
    assert compiled == []


@contextmanager
def count_compilations():
    """Names of what XLA compiles meanwhile, operations outside of steps included."""
    compiled, is_open = [], [True]

    def note(name, duration, **details):
        if is_open[0] and name == "/jax/core/compile/backend_compile_duration":
            compiled.append(details.get("fun_name", name))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield compiled
    is_open[0] = False


def test_the_cache_is_donated_and_no_step_calls_the_host(emulated):
    engine, _ = emulated
    state = engine._runner._tables.state
    kv_bytes = sum(each.numel() * 4 for each in state.kv)
    for executable in executables_of(engine)._ready.values():
        assert executable.compiled.memory_analysis().alias_size_in_bytes >= kv_bytes
        text = executable.compiled.as_text()
        for word in ("callback", "infeed", "outfeed", "send(", "recv("):
            assert word not in text, word


def test_a_decode_step_brings_its_tokens_to_the_host_and_nothing_else(emulated, monkeypatch):
    engine, facts = emulated
    compiler = executables_of(engine)._platform.compiler
    fetched, launched = [], []
    start = compiler._copies.start
    monkeypatch.setattr(
        compiler._copies, "start", lambda *each: (fetched.append(each[0].shape), start(*each))[1]
    )
    launch = type(engine._runner).launch
    monkeypatch.setattr(
        type(engine._runner), "launch", lambda *each: (launched.append(1), launch(*each))[1]
    )
    serve(engine, facts, random_prompts(3, 9), [SamplingParams(temperature=0, max_tokens=20)] * 3)
    assert len(launched) >= 20
    assert fetched == [(8,)] * len(launched)


def test_kernels_answer_as_the_gather_does(tmp_path):
    """The kernels, interpreted: head dim 64, so that pages are made of whole tiles."""
    folder = make_folder(tmp_path, head_dim=64, num_attention_heads=2, num_key_value_heads=1)
    prompts = random_prompts(4, 70)
    expected = serve_on_cpu(folder, prompts, SAMPLINGS)
    options = EMULATED | {"use": ("attention/global=pallas",), "max_running_requests": 4}
    engine, facts = start_engine(folder, context_length=96, **options)
    assert serve(engine, facts, prompts, SAMPLINGS) == expected
