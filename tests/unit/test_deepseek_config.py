"""config.json of DeepSeek-V2 becomes sizes, or a refusal that says what is served."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV2Config

from chiplet.errors import ModelError
from chiplet.formats.hf_config import read_hf_config
from chiplet.layers.moe import within_groups
from chiplet.models.deepseek_config import DeepseekConfig, read_config

# As DeepSeek-V2-Lite's config.json has them, without what is of training.
LITE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 102400,
}


def test_sizes_of_the_small_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LITE))
    with caplog.at_level(logging.WARNING):
        config = read_hf_config(path, read_config)
    assert caplog.records == []
    assert (config.num_kv_heads, config.head_dim, config.context_length) == (1, 576, 163840)
    own = DeepseekConfig.of(config.stated)
    assert (own.latent.rank, own.latent.rotary_dim, own.latent.query_dim) == (512, 64, 192)
    assert own.latent.query_rank is None
    assert own.scaling.amplitude == 1.0
    mscale = 1 + 0.0707 * math.log(40)
    assert own.scale == pytest.approx(192**-0.5 * mscale**2)
    assert (own.shared_width, own.num_dense_layers) == (2816, 1)
    assert (own.experts.top_k, own.experts.renormalize, own.experts.num_groups) == (6, False, 1)


def test_what_another_writer_writes_is_known(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_config(DeepseekV2Config(num_experts_per_tok=2).to_dict())
    assert caplog.records == []
    with caplog.at_level(logging.WARNING):
        read_config(LITE | {"a_new_field": 3})
    assert "a_new_field" in caplog.text


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'.*'greedy', 'group_limited"),
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'.*'softmax'"),
        ({"norm_topk_prob": True}, "norm_topk_prob is True.*served: False"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2.*served: 1"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"kv_lora_rank": None}, "kv_lora_rank is missing.*an integer of 1 or more"),
        ({"n_shared_experts": 0}, "n_shared_experts is 0"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim is 63.*an even number"),
        ({"num_experts_per_tok": 65}, "num_experts_per_tok is 65.*1 to 64"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope type is 'dynamic'.*yarn"),
        ({"rope_scaling": {"type": "yarn", "factor": 0}}, "factor is 0.*a positive number"),
        (
            {"topk_method": "group_limited_greedy", "n_group": 7, "topk_group": 1},
            "n_group is 7.*a divisor of 64",
        ),
        (
            {"topk_method": "group_limited_greedy", "n_group": 16, "topk_group": 1},
            "topk_group is 1.*2 to 16",
        ),
        ({"logit_scale": 2.0}, "logit_scale is 2.0"),
    ],
)
def test_what_is_not_served_is_refused(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ModelError, match=found):
        read_config(LITE | changes)


def test_a_softmax_within_groups_times_their_share_is_one_among_all() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(40, 12)
    left, share = within_groups(logits, 4, 2)
    assert left.isfinite().all()
    probabilities = logits.softmax(1)
    best = probabilities.unflatten(1, (4, 3)).amax(2)
    is_kept = best >= best.topk(2, dim=1).values[:, -1:]
    wanted = probabilities * is_kept.repeat_interleave(3, dim=1)
    torch.testing.assert_close(left.softmax(1) * share, wanted)
