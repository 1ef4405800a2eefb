"""Engines whose weights stay in 8 bits, with the plugin's own kernel, interpreted."""

import pytest

pytest.importorskip("torchax", reason="torchax is not installed; run 'make test-tpu'")

from chiplet.sampling_params import SamplingParams
from tests.tpu.engines import (
    EMULATED,
    make_folder,
    random_prompts,
    serve,
    serve_on_cpu,
    start_engine,
)

ROLES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
KERNEL = tuple(f"linear/{role}=pallas" for role in ROLES)
REFERENCE = ("linear=reference",)
SAMPLINGS = [
    SamplingParams(temperature=0, max_tokens=12),
    SamplingParams(temperature=0.8, top_k=8, top_p=0.9, seed=4, max_tokens=9),
]


@pytest.mark.parametrize(
    ("quantization", "stored", "ranks"),
    [("int8", "int8", 1), ("fp8", "float8_e4m3fn", 1), ("int8", "int8", 2)],
)
def test_answers_are_those_of_dequantized_weights(tmp_path, quantization, stored, ranks):
    folder, prompts = make_folder(tmp_path), random_prompts(4, 40)
    options = {"quantization": quantization, "context_length": 64, "max_running_requests": 4}
    if ranks == 1:
        expected = serve_on_cpu(folder, prompts, SAMPLINGS * 2, use=REFERENCE, **options)
    options |= EMULATED | {"tensor_parallel_size": ranks}
    if ranks > 1:
        # Each rank rounds what it holds: with other ranks, other scales.
        dequantizing = start_engine(folder, use=REFERENCE, **options)
        expected = serve(*dequantizing, prompts, SAMPLINGS * 2)
    engine, facts = start_engine(folder, use=KERNEL, **options)
    assert stored_as(engine, stored) == len(ROLES) * 2, "a weight of each role and layer"
    assert serve(engine, facts, prompts, SAMPLINGS * 2) == expected


def stored_as(engine, dtype):
    """How many arrays of a type the compiled steps take as constants."""
    executables = engine._runner._executables._ready.values()
    counts = {sum(str(each.dtype) == dtype for each in one._constants) for one in executables}
    (count,) = counts
    return count
