"""No peer, but the machine itself: what memory and multiplication reach, measured when asked.

`report` gives the costs of a GGUF model and, each time anew, the rates of this moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from protocol import Start, UnsupportedError, serve

from chiplet.formats.gguf_file import GgufFile, read_gguf

REPEATS = 5
READ_NUMBERS = 64 << 20
"""float32 numbers of the bandwidth test: 256 MiB, more than any cache."""

PRODUCT_SIZE = 2048


class Limits:
    """Rates through torch's own operations: a sum, and oneDNN's packed products."""

    def start(self, settings: Start) -> dict[str, Any]:
        """Make the operands."""
        torch.set_num_threads(settings.threads)
        self._costs = model_costs(read_gguf(Path(settings.model)))
        self._numbers = torch.ones(READ_NUMBERS)
        self._products = [
            ("bf16_flops", _bf16_product()),
            ("int8_ops", _int8_product()),
        ]
        return {}

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> int:
        """Nothing: a machine generates no text by itself."""
        raise UnsupportedError("the limits of a machine are no model")

    def report(self) -> dict[str, Any]:
        """Bytes and operations per second, the best of some, and what the model costs."""
        rates = {"read_bytes": self._numbers.nbytes / _best_s(self._numbers.sum)}
        for name, product in self._products:
            rates[name] = 2 * PRODUCT_SIZE**3 / _best_s(product)
        return {**rates, **self._costs}


def model_costs(file: GgufFile) -> dict[str, int]:
    """What one token costs: weights multiplied in the layers and in the head, and their bytes.

    Attention's own products and the reading of the cache are left out, so that fractions of a
    limit made from these are rather too low than too high.
    """
    layers = [each for each in file.tensors if len(each.shape) == 2 and each.name[:4] == "blk."]
    by_name = {each.name: each for each in file.tensors}
    head = by_name.get("output.weight") or by_name["token_embd.weight"]
    return {
        "layer_weights": sum(each.num_elements for each in layers),
        "head_weights": head.num_elements,
        "file_weight_bytes": sum(each.size_bytes for each in layers) + head.size_bytes,
    }


def _best_s(work: Callable[[], object]) -> float:
    best = float("inf")
    with torch.inference_mode():
        for _ in range(REPEATS):
            start = time.perf_counter()
            work()
            best = min(best, time.perf_counter() - start)
    return best


def _bf16_product() -> Callable[[], object]:
    size = PRODUCT_SIZE
    x = torch.randn(size, size).bfloat16()
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(size, size).bfloat16(), size)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _int8_product() -> Callable[[], object]:
    size = PRODUCT_SIZE
    x = torch.randint(0, 255, (size, size), dtype=torch.uint8)
    weight = torch.randint(-127, 127, (size, size), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [size, size])
    scales, zeros = torch.ones(size), torch.zeros(size, dtype=torch.long)

    def run() -> object:
        return torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return run


if __name__ == "__main__":
    serve(Limits())
