"""Version of each plugin interface, as (major, minor).

A minor step adds what an older plugin need not know: optional fields, features, hooks, protocols
beside others. A major step changes what a plugin must do. docs/compatibility.md has the whole
promise, and tests/fossils/ what keeps it.

platform 1.1: `ThreadedPlatform`, for comparisons side by side at start.
attention 1.1: `Part`. 1.2: `tree_bits`, `CapturingAttention`, `KvSpec.value_dim`.
linear 1.1: `LinearRequest.is_gated` and `GatedLinear`, for gates applied by the product itself.
linear 1.2: `StretchProvider` and `StoredLinear`, for layers between attentions in one call.
ops 1.1: `Op.MASK_TOKENS`, for grammars.
moe 1.1: `MoeRequest.scheme` and coded `ExpertWeights`, for quantized experts.
communication 1.1: `SharedPlatform`, for devices that several ranks share.
models 1.1: `chiplet.modeling.AttentionVariant`, for scales, softcaps, sinks and groups.
models 1.2: `LayerContext.gating` and `Linear.gated`, for outputs of which half gates the other.
models 1.3: `AttentionVariant.value_dim`, groups and scale of `ExpertsConfig`, YaRN.
models 1.4: `Linear.product`, `RmsNorm.weight` and `eps`, for stretches.
"""

from __future__ import annotations

INTERFACE_VERSIONS: dict[str, tuple[int, int]] = {
    "platform": (1, 1),
    "attention": (1, 2),
    "linear": (1, 2),
    "ops": (1, 1),
    "communication": (1, 1),
    "compilation": (1, 0),
    "moe": (1, 1),
    "models": (1, 4),
    "quantization": (1, 0),
}
