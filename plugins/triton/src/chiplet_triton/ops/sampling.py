"""One token per row, without sorting the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet_triton.kernels.sampling import sample_kernel


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    has_filters: bool,
) -> Tensor:
    """One token per row; see `chiplet.api.ops.Sample`."""
    num_rows, vocab_size = logits.shape
    out = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    if num_rows:
        sample_kernel[(num_rows,)](
            logits,
            temperature,
            top_k,
            top_p,
            min_p,
            uniform,
            out,
            vocab_size,
            logits.stride(0),
            HAS_FILTERS=has_filters,
            BLOCK=2048,
            num_warps=8,
        )
    return out
