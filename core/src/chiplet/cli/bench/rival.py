"""Rival: another engine on the same model, for figures from the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chiplet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TransformersRival:
    """Transformers' `generate` on a model held in memory."""

    model: Any

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> int:
        """Complete prompts of one length as one batch; gives the number of new tokens.

        Greedy, and end tokens do not end an answer, like `exact_length`. Blocks.
        """
        import torch

        token_ids = torch.tensor(prompts, device=self.model.device)
        # Without inference mode, generate's own no_grad would still pay for version counters.
        with torch.inference_mode():
            output = self.model.generate(
                token_ids,
                attention_mask=torch.ones_like(token_ids),
                do_sample=False,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                use_cache=True,
                pad_token_id=0,
            )
        return output.shape[0] * (output.shape[1] - token_ids.shape[1])


def load_transformers(model_path: Path, dtype: str, device: str) -> TransformersRival:
    """Transformers with the model of a folder or GGUF file.

    Raises:
        ConfigError: Transformers is missing or cannot read the model.
    """
    try:
        import torch
        import transformers
    except ImportError:
        raise ConfigError(
            "--against transformers needs Transformers, which is not installed.",
            remedy="Install it: pip install transformers accelerate gguf",
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    is_file = model_path.is_file()
    arguments = {"gguf_file": model_path.name} if is_file else {}
    folder = model_path.parent if is_file else model_path
    try:
        factory: Any = transformers.AutoModelForCausalLM
        model = factory.from_pretrained(str(folder), dtype=getattr(torch, dtype), **arguments)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"Transformers cannot load {model_path}: {' '.join(str(error).split())[:200]}",
            remedy="Leave --against out, or install what it asks for.",
        ) from None
    return TransformersRival(model.to(device).eval())
