"""OpenVINO GenAI's continuous batching on the same GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import Start, serve


class OpenVino:
    """A GGUF file in OpenVINO GenAI."""

    def start(self, settings: Start) -> dict[str, Any]:
        """Read the file and compile it for the processor."""
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = settings.max_streams
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = 2  # GiB
        for name, value in settings.extra.items():
            setattr(scheduler, name, value)
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            settings.model,
            scheduler,
            "CPU",
            {"INFERENCE_NUM_THREADS": settings.threads, "PERFORMANCE_HINT": "LATENCY"},
        )
        return {}

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> int:
        """All prompts at once, greedily."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = num_tokens
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        inputs = [openvino.Tensor(np.array([each], dtype=np.int64)) for each in prompts]
        results = self._pipeline.generate(inputs, [config] * len(inputs))
        return sum(len(each.m_generation_ids[0]) for each in results)

    def report(self) -> dict[str, Any]:
        """Versions."""
        return {"openvino-genai": openvino_genai.__version__, "openvino": openvino.__version__}


if __name__ == "__main__":
    serve(OpenVino())
