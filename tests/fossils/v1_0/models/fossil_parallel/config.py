from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chiplet.api import ModelError

NAMES = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}


def read_config(stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checkpoint's config.json in core's words."""
    if stated.get("gate") not in (None, "silu"):
        raise ModelError(f"gate is {stated['gate']!r}; supported: silu.")
    return {**stated, **{ours: stated[theirs] for theirs, ours in NAMES.items()}}


@dataclass(frozen=True)
class ParallelConfig:
    """What core knows nothing of."""

    branch_scale: float

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> "ParallelConfig":
        """From `ModelConfig.stated`."""
        return cls(branch_scale=float(stated.get("branch_scale", 1.0)))
