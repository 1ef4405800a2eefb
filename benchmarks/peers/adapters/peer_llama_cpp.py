"""llama.cpp through llama-cpp-python: one stream at a time, as its Python interface serves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import llama_cpp
from protocol import Start, UnsupportedError, serve


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def start(self, settings: Start) -> dict[str, Any]:
        """Load the file; llama.cpp maps it."""
        self._llm = llama_cpp.Llama(
            model_path=settings.model,
            n_ctx=2048,
            n_threads=settings.threads,
            n_threads_batch=settings.threads,
            verbose=False,
            **settings.extra,
        )
        return {"system": llama_cpp.llama_print_system_info().decode()}

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> int:
        """One prompt, greedily."""
        if len(prompts) != 1:
            raise UnsupportedError("llama-cpp-python generates one stream at a time")
        self._llm.reset()
        tokens = self._llm.generate(list(prompts[0]), temp=0.0)
        return len(list(islice(tokens, num_tokens)))

    def report(self) -> dict[str, Any]:
        """Version."""
        return {"llama-cpp-python": llama_cpp.__version__}


if __name__ == "__main__":
    serve(LlamaCpp())
