"""The demo model as Transformers computes it, and prompts to compare with."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from chiplet.formats.catalogue import pull

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "The three laws of thermodynamics are",
    "In 1969, Apollo 11",
    "To make bread you need",
    "import numpy as np\n\n",
    "Dear Sir or Madam,",
    "The square root of 144 is",
    "Photosynthesis is the process by which",
    "Q: Who wrote Hamlet?\nA:",
    "1, 1, 2, 3, 5, 8,",
    "La capitale de l'Italie est",
    "The difference between a virus and a bacterium is",
    "SELECT name FROM users WHERE",
    "It was the best of times,",
    "A haiku about autumn:\n",
    "Water boils at",
    "<html>\n  <head>",
    "The quick brown fox",
]


def load_in_transformers() -> PreTrainedModel:
    """The model in float32."""
    path = pull("smollm2-135m")
    return AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    ).eval()


@torch.no_grad()
def greedy_after(
    model: PreTrainedModel, prompt: tuple[int, ...], answer: tuple[int, ...]
) -> list[int]:
    """What Transformers would pick after the prompt and after each token of the answer.

    Equal to the answer itself if and only if greedy generation gives that answer.
    """
    logits = model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
    return logits.argmax(dim=-1).tolist()
