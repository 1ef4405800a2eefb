"""Transformers' own `generate` in bfloat16: one batch, padded by nothing since lengths agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from protocol import Start, serve


class Transformers:
    """A checkpoint folder in Transformers."""

    def start(self, settings: Start) -> dict[str, Any]:
        """Load the folder."""
        torch.set_num_threads(settings.threads)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=torch.bfloat16, **settings.extra
        ).eval()
        return {}

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> int:
        """All prompts as one batch, greedily."""
        token_ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = self._model.generate(
                token_ids,
                attention_mask=torch.ones_like(token_ids),
                do_sample=False,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                use_cache=True,
                pad_token_id=0,
            )
        return output.shape[0] * (output.shape[1] - token_ids.shape[1])

    def report(self) -> dict[str, Any]:
        """Versions."""
        return {"transformers": transformers.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    serve(Transformers())
