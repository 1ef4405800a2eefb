"""Chiplet's `LLM`: the engine in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protocol import Start, serve

import chiplet
from chiplet import LLM, SamplingParams


class Chiplet:
    """A file or folder in Chiplet; `extra` are settings by the names of their flags."""

    def start(self, settings: Start) -> dict[str, Any]:
        """Load the model with defaults, but for what peers.toml says."""
        self._llm = LLM(settings.model, **settings.extra)
        return {"banner": self._llm.facts.banner}

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> int:
        """All prompts at once, greedily."""
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        completions = self._llm.generate(list(prompts), params)
        return sum(len(each.answers[0].token_ids) for each in completions)

    def report(self) -> dict[str, Any]:
        """Version, and who serves which operation."""
        plan = self._llm.facts.plan
        return {"chiplet": chiplet.__version__, "plan": plan}


if __name__ == "__main__":
    serve(Chiplet())
