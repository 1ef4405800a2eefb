"""vLLM's CPU build, offline, in bfloat16."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from protocol import Start, serve


class Vllm:
    """A checkpoint folder in vLLM."""

    def start(self, settings: Start) -> dict[str, Any]:
        """Load, compile and warm up, as vLLM does by default."""
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{settings.threads - 1}")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        # It reads its environment while it is imported.
        self._vllm = import_module("vllm")
        self._llm = self._vllm.LLM(
            settings.model,
            dtype="bfloat16",
            max_model_len=2048,
            max_num_seqs=settings.max_streams,
            enable_prefix_caching=True,
            **settings.extra,
        )
        return {}

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> int:
        """All prompts at once, greedily."""
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
        )
        inputs = [{"prompt_token_ids": list(each)} for each in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return sum(len(each.outputs[0].token_ids) for each in outputs)

    def report(self) -> dict[str, Any]:
        """Version."""
        return {"vllm": self._vllm.__version__}


if __name__ == "__main__":
    serve(Vllm())
