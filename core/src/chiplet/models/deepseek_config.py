"""What config.json says of a model of the DeepSeek-V2 family; no tensor library."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from chiplet.config import ExpertsConfig, RopeScaling
from chiplet.errors import ModelError
from chiplet.formats.config_fields import HARMLESS, PLAIN, READ

logger = logging.getLogger(__name__)

ARCHITECTURE = "DeepseekV2ForCausalLM"

_SIZES = (
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "num_attention_heads",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)
_OWN = frozenset(
    {
        *_SIZES,
        "q_lora_rank",
        "first_k_dense_replace",
        "routed_scaling_factor",
        "topk_method",
        "n_group",
        "topk_group",
    }
)
_METHODS = ("greedy", "group_limited_greedy")
_SERVED: Mapping[str, Collection[Any]] = {
    name: values for name, values in PLAIN.items() if name not in _OWN
} | {
    "hidden_act": ("silu", "swish"),
    "norm_topk_prob": (False,),
    "moe_layer_freq": (1,),
    "topk_method": _METHODS,
    "partial_rotary_factor": (1,),
    "use_mla": (True,),
}
"""Fields that change the model's numbers, and the values that are served; null always is."""
_HARMLESS = HARMLESS | {"aux_loss_alpha", "ep_size", "seq_aux", "qk_head_dim", "rope_interleave"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConfig:
    """Sizes of latent attention.

    Attributes:
        rank: numbers cached of a token, from which each head makes its keys and values.
        query_rank: width through which queries are made; None where they are made at once.
        plain_dim, rotary_dim: elements of a head's query without, and with a rotation.
        value_dim: elements of a head's value.
    """

    rank: int
    query_rank: int | None
    plain_dim: int
    rotary_dim: int
    value_dim: int

    @property
    def query_dim(self) -> int:
        """Elements of a head's query."""
        return self.plain_dim + self.rotary_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekConfig:
    """What the family has beyond `ModelConfig`.

    Attributes:
        latent: of every layer.
        scaling: of rotary frequencies.
        scale: factor on the scores before softmax.
        experts: those that a router picks from.
        shared_width: middle of the feed-forward part that all tokens go through besides.
        num_dense_layers: the first ones, which have a plain feed-forward part.
    """

    latent: LatentConfig
    scaling: RopeScaling
    scale: float
    experts: ExpertsConfig
    shared_width: int
    num_dense_layers: int

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> DeepseekConfig:
        """Read a config.json.

        Raises:
            ModelError: a field is missing, or asks for what is not served.
        """
        sizes = {name: _count(stated, name) for name in _SIZES}
        query_rank = stated.get("q_lora_rank")
        latent = LatentConfig(
            rank=sizes["kv_lora_rank"],
            query_rank=None if query_rank is None else _count(stated, "q_lora_rank"),
            plain_dim=sizes["qk_nope_head_dim"],
            rotary_dim=sizes["qk_rope_head_dim"],
            value_dim=sizes["v_head_dim"],
        )
        if latent.rotary_dim % 2:
            raise _refusal("qk_rope_head_dim", latent.rotary_dim, "an even number")
        scaling, mscale = _rope(stated)
        return cls(
            latent=latent,
            scaling=scaling,
            scale=latent.query_dim**-0.5 * mscale**2,
            experts=_experts(stated, sizes),
            shared_width=sizes["n_shared_experts"] * sizes["moe_intermediate_size"],
            num_dense_layers=_count(stated, "first_k_dense_replace", default=0, least=0),
        )


def read_config(stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config.json of the family with the names that core reads.

    Raises:
        ModelError: a field is missing, or asks for what is not served.
    """
    for name, served in _SERVED.items():
        value = stated.get(name)
        if value is not None and value not in served:
            raise _refusal(name, value, ", ".join(map(repr, served)) or "null")
    latent = DeepseekConfig.of(stated).latent
    unknown = [
        name
        for name, value in stated.items()
        if value not in (None, False, [], {})
        if name not in READ | _OWN | _HARMLESS | _SERVED.keys()
    ]
    if unknown:
        logger.warning(
            "config.json: not known, and not read: %s. If one of them changes the model's numbers, "
            "its answers are wrong.",
            ", ".join(sorted(unknown)),
        )
    # What is cached: one row of a token for all heads.
    return {
        **stated,
        "num_key_value_heads": 1,
        "head_dim": latent.rank + latent.rotary_dim,
        "max_position_embeddings": stated.get("max_position_embeddings") or 2048,
    }


def _experts(stated: Mapping[str, Any], sizes: Mapping[str, int]) -> ExpertsConfig:
    """The routed experts."""
    num_experts, top_k = sizes["n_routed_experts"], sizes["num_experts_per_tok"]
    num_groups = num_kept = 1
    if stated.get("topk_method") == "group_limited_greedy":
        num_groups, num_kept = _count(stated, "n_group"), _count(stated, "topk_group")
        if num_experts % num_groups:
            raise _refusal("n_group", num_groups, f"a divisor of {num_experts} experts")
        if not top_k * num_groups <= num_kept * num_experts <= num_groups * num_experts:
            least = -(-top_k * num_groups // num_experts)
            raise _refusal("topk_group", num_kept, f"{least} to {num_groups}")
    if top_k > num_experts:
        raise _refusal("num_experts_per_tok", top_k, f"1 to {num_experts}")
    return ExpertsConfig(
        num_experts=num_experts,
        intermediate_size=sizes["moe_intermediate_size"],
        top_k=top_k,
        renormalize=False,
        num_groups=num_groups,
        num_kept_groups=num_kept,
        scale=_number(stated, "routed_scaling_factor", 1.0),
    )


def _rope(stated: Mapping[str, Any]) -> tuple[RopeScaling, float]:
    """Scaling, and what queries and keys are both multiplied by besides.

    Source: arXiv:2309.00071, section 3.4, whose factor on queries and keys the family splits: a
    part of it is on the rotated elements alone.
    """
    given = stated.get("rope_parameters") or stated.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise _refusal("rope_scaling", given, "an object")
    table = cast(dict[str, Any], given)
    kind = table.get("rope_type") or table.get("type") or "default"
    if kind == "default":
        return RopeScaling(), 1.0
    if kind != "yarn":
        raise _refusal("rope type", kind, "default, yarn")
    if table.get("truncate") is False:
        raise _refusal("rope truncate", False, "true")
    factor = _number(table, "factor")
    rotated, of_all = (
        _number(table, name) if table.get(name) else 0.0 for name in ("mscale", "mscale_all_dim")
    )
    if table.get("attention_factor") is not None:
        amplitude = _number(table, "attention_factor")
    elif rotated and of_all:
        amplitude = _mscale(factor, rotated) / _mscale(factor, of_all)
    else:
        amplitude = _mscale(factor, 1.0)
    scaling = RopeScaling(
        kind="yarn",
        factor=factor,
        original_context_length=_count(table, "original_max_position_embeddings"),
        beta_fast=_number(table, "beta_fast", 32.0),
        beta_slow=_number(table, "beta_slow", 1.0),
        amplitude=amplitude,
    )
    return scaling, _mscale(factor, of_all)


def _mscale(factor: float, weight: float) -> float:
    """Source: arXiv:2309.00071, eq. 22."""
    return 1.0 + 0.1 * weight * math.log(factor) if factor > 1 else 1.0


def _count(
    values: Mapping[str, Any], name: str, *, default: int | None = None, least: int = 1
) -> int:
    value = values.get(name)
    value = default if value is None else value
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise _refusal(name, value, f"an integer of {least} or more")


def _number(values: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = values.get(name)
    value = default if value is None else value
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    raise _refusal(name, value, "a positive number")


def _refusal(name: str, value: object, served: str) -> ModelError:
    found = "missing" if value is None else repr(value)
    return ModelError(
        f"config.json: {name} is {found}, which {ARCHITECTURE} is not served with; served: "
        f"{served}.",
        remedy="Choose another model, or a plugin that serves this one.",
    )
