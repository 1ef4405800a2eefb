"""config.json becomes a ModelConfig, or a refusal that says what is supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from chiplet.config import Dtype, RopeScaling
from chiplet.errors import ModelError
from chiplet.formats.config_fields import PLAIN
from chiplet.formats.hf_config import _ARCHITECTURES, read_hf_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "torch_dtype": "bfloat16",
}
LLAMA_3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _write(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(LLAMA | changes))
    return path


def test_defaults_are_those_of_the_family(tmp_path: Path) -> None:
    config = read_hf_config(_write(tmp_path))
    assert config.num_kv_heads == 4
    assert config.head_dim == 16
    assert config.context_length == 2048
    assert config.rope_theta == 10000.0
    assert config.rope_scaling == RopeScaling()
    assert config.rms_norm_eps == 1e-6
    assert not config.tie_word_embeddings
    assert config.sliding_window is None
    assert config.dtype is Dtype.BFLOAT16


def test_a_null_counts_as_absent(tmp_path: Path) -> None:
    path = _write(tmp_path, head_dim=None, num_key_value_heads=None, rope_scaling=None)
    assert read_hf_config(path) == read_hf_config(_write(tmp_path))


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama_3_scaling_in_both_spellings(tmp_path: Path, key: str) -> None:
    table = dict(LLAMA_3_SCALING)
    changes: dict[str, object] = {key: table}
    if key == "rope_parameters":
        table["rope_theta"] = 500000.0
    else:
        changes["rope_theta"] = 500000.0
    config = read_hf_config(_write(tmp_path, **changes))
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == RopeScaling(
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_context_length=8192,
    )


def test_linear_scaling_under_its_old_name(tmp_path: Path) -> None:
    config = read_hf_config(_write(tmp_path, rope_scaling={"type": "linear", "factor": 2}))
    assert config.rope_scaling == RopeScaling(kind="linear", factor=2.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"sliding_window": 512}, 512), ({"sliding_window": None}, None), ({}, 4096)],
)
def test_the_window_of_mistral(
    tmp_path: Path, changes: dict[str, object], expected: int | None
) -> None:
    path = _write(tmp_path, architectures=["MistralForCausalLM"], head_dim=32, **changes)
    config = read_hf_config(path)
    assert config.sliding_window == expected
    assert config.head_dim == 32


def test_end_tokens_come_from_the_generation_config_first(tmp_path: Path) -> None:
    path = _write(tmp_path, eos_token_id=2)
    assert read_hf_config(path).eos_token_ids == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert read_hf_config(path).eos_token_ids == (5, 6)


@pytest.mark.parametrize(
    "kind", [LlamaConfig, MistralConfig, MixtralConfig, Qwen3Config, Qwen3MoeConfig]
)
def test_nothing_that_transformers_saves_is_unheard_of(
    tmp_path: Path, kind: type, caplog: pytest.LogCaptureFixture
) -> None:
    kind(architectures=[f"{kind.__name__.removesuffix('Config')}ForCausalLM"]).save_pretrained(
        tmp_path
    )
    read_hf_config(tmp_path / "config.json")
    assert "not known" not in caplog.text


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig])
def test_what_transformers_saves(tmp_path: Path, kind: type) -> None:
    theirs = kind(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
        tie_word_embeddings=True, dtype="float16",
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours = read_hf_config(tmp_path / "config.json")
    assert ours.architecture == f"{kind.__name__.removesuffix('Config')}ForCausalLM"
    assert (ours.vocab_size, ours.num_layers) == (theirs.vocab_size, theirs.num_hidden_layers)
    assert (ours.num_heads, ours.num_kv_heads) == (4, 2)
    assert ours.head_dim == theirs.head_dim
    assert ours.context_length == theirs.max_position_embeddings
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)
    assert (ours.rms_norm_eps, ours.tie_word_embeddings) == (1e-5, True)
    assert ours.dtype is Dtype.FLOAT16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": [7]}, "supported: LlamaForCausalLM"),
        ({"architectures": None, "model_type": "gemma"}, "'gemma' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "supported: default, linear"),
        ({"hidden_act": "gelu"}, "supported: silu"),
        ({"quantization_config": "awq"}, "quantization_config is 'awq'; expected an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"torch_dtype": "float8_e4m3fn"}, "supported: float32, float16, bfloat16"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"num_attention_heads": "4"}, "expected a positive integer"),
        ({"tie_word_embeddings": 1}, "expected true or false"),
        ({"eos_token_id": "x"}, "expected a token id"),
        ({"rope_scaling": dict(LLAMA_3_SCALING, high_freq_factor=1.0)}, "must be above"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
    ],
)
def test_refusals_say_what_is_supported(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        read_hf_config(_write(tmp_path, **changes))
    assert said in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("architecture", sorted(set(_ARCHITECTURES.values())))
def test_no_family_ignores_what_changes_its_numbers(tmp_path: Path, architecture: str) -> None:
    own: dict[str, object] = {"architectures": [architecture], "num_experts_per_tok": 2}
    own |= {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 32}
    for name, plain in PLAIN.items():
        for value in (None, *plain):
            read_hf_config(_write(tmp_path, **own, **{name: value}))
        with pytest.raises(ModelError, match=f"{name} is 30.5, which {architecture}"):
            read_hf_config(_write(tmp_path, **own, **{name: 30.5}))
    with pytest.raises(ModelError, match="layer_types has full_attention, sliding_attention"):
        read_hf_config(_write(tmp_path, **own, layer_types=["sliding_attention", "full_attention"]))


def test_what_nobody_has_heard_of_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_hf_config(_write(tmp_path, use_cache=True, acme_gain=2.0, acme_shift=None, acme_on=False))
    assert "not known, and not read: acme_gain. " in caplog.text


def test_what_another_family_asks_for_is_its_own_business(tmp_path: Path) -> None:
    own = {
        "architectures": ["AcmeForCausalLM"],
        "max_position_embeddings": 64,
        "hidden_act": "gelu",
        "rope_scaling": {"rope_type": "yarn", "factor": 4},
        "partial_rotary_factor": 0.5,
        "acme_layout": "wide",
    }
    config = read_hf_config(_write(tmp_path, **own))
    assert {name: config.stated[name] for name in own} == own
    assert config.rope_scaling == RopeScaling()
    # Core's own families are as strict as ever.
    own["architectures"] = ["LlamaForCausalLM"]
    with pytest.raises(ModelError, match="not supported"):
        read_hf_config(_write(tmp_path, **own))


def test_other_names_are_translated(tmp_path: Path) -> None:
    path = _write(tmp_path, hidden_size=None, n_embd=96, num_attention_heads=4)
    config = read_hf_config(path, lambda values: {**values, "hidden_size": values["n_embd"]})
    assert config.hidden_size == 96
    assert config.stated["n_embd"] == 96


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(ModelError, match=r"config\.json"):
            read_hf_config(path)
    with pytest.raises(ModelError, match="No such file"):
        read_hf_config(tmp_path / "other.json")
