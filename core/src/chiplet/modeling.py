"""Layers for model files: what a plugin may import beside `chiplet.api` to bring a model family.

Its version is that of the interface `models`.
"""

from chiplet.config import ExpertsConfig, ModelConfig, RopeScaling
from chiplet.layers.attention import AttentionInputs, AttentionVariant, PagedAttention
from chiplet.layers.context import LayerContext
from chiplet.layers.embedding import Embedding
from chiplet.layers.linear import Linear
from chiplet.layers.mlp import GatedMlp
from chiplet.layers.moe import SparseMlp
from chiplet.layers.norm import HeadNorm, RmsNorm
from chiplet.layers.rotary import RotaryEmbedding
from chiplet.layers.weights import WeightHolder, WeightMap, WeightTarget
from chiplet.models.base import CausalLM
from chiplet.parallel.sharding import Shard

__all__ = [
    "AttentionInputs",
    "AttentionVariant",
    "CausalLM",
    "Embedding",
    "ExpertsConfig",
    "GatedMlp",
    "HeadNorm",
    "LayerContext",
    "Linear",
    "ModelConfig",
    "PagedAttention",
    "RmsNorm",
    "RopeScaling",
    "RotaryEmbedding",
    "Shard",
    "SparseMlp",
    "WeightHolder",
    "WeightMap",
    "WeightTarget",
]
