"""Settings left open get the values that suit the checkpoint and the device."""

import pytest

from chiplet.api import Dtype
from chiplet.config import EngineConfig, ModelConfig
from chiplet.resolution import resolve

DTYPES = ("bfloat16", "float32", "float16")


def model(dtype):
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        context_length=64,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        dtype=Dtype(dtype),
    )


@pytest.mark.parametrize(
    ("asked", "stored", "states_dtype", "found"),
    [
        ("auto", "float32", True, "float32"),
        ("auto", "float32", False, "bfloat16"),
        ("float16", "float32", False, "float16"),
        ("auto", "float16", True, "float16"),
    ],
)
def test_the_type_is_the_checkpoints_unless_its_matrices_are_in_blocks(
    asked, stored, states_dtype, found
):
    config = EngineConfig.from_options(dtype=asked)
    resolved = resolve(config, model(stored), dtypes=DTYPES, states_dtype=states_dtype)
    assert resolved.model.dtype == found
    assert resolved.cache.kv_cache_dtype == found
