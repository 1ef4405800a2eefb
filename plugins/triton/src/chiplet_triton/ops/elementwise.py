"""Norms, rotation, activation, embedding, penalties and masks."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from chiplet_triton.device import DeviceTraits, launch_options
from chiplet_triton.kernels.elementwise import (
    embedding_kernel,
    mask_tokens_kernel,
    penalize_kernel,
    silu_mul_kernel,
)
from chiplet_triton.kernels.norm import rms_norm_kernel
from chiplet_triton.kernels.rotary import rotary_kernel

_COLUMNS = 1024


class ElementwiseOps:
    """Operations with the traits of one device; see `chiplet.api.ops` for what each computes."""

    def __init__(self, traits: DeviceTraits) -> None:
        self._overlap = traits.can_overlap
        self._launch = launch_options(traits)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        self._norm(x, None, weight, eps, out, out)
        return out

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """A residual sum and its norm."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        total = torch.empty_like(out)
        self._norm(x, residual, weight, eps, out, total)
        return out, total

    def _norm(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        eps: float,
        out: Tensor,
        total: Tensor,
    ) -> None:
        num_rows, hidden = x.shape
        if num_rows == 0:
            return
        block = next_power_of_2(hidden)
        rms_norm_kernel[(num_rows,)](
            x,
            residual,
            weight,
            out,
            total,
            hidden,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            eps,
            HAS_RESIDUAL=residual is not None,
            BLOCK=block,
            OVERLAP=self._overlap,
            num_warps=min(16, max(1, block // 512)),
            **self._launch,
        )

    def rotary(
        self, q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rotation of queries and keys, one program a token."""
        q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        k_out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
        num_tokens, num_heads, head_dim = q.shape
        if num_tokens == 0:
            return q_out, k_out
        rotary_kernel[(num_tokens,)](
            q,
            k,
            positions,
            cos_sin,
            q_out,
            k_out,
            num_heads,
            k.shape[1],
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            HEAD_DIM=head_dim,
            BLOCK_HALF=next_power_of_2(head_dim // 2),
            BLOCK_HEADS=next_power_of_2(num_heads),
            BLOCK_KV_HEADS=next_power_of_2(k.shape[1]),
            OVERLAP=self._overlap,
            num_warps=4,
            **self._launch,
        )
        return q_out, k_out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up."""
        num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(num_rows, width, dtype=gate_up.dtype, device=gate_up.device)
        if num_rows:
            silu_mul_kernel[(num_rows, cdiv(width, _COLUMNS))](
                gate_up,
                out,
                width,
                gate_up.stride(0),
                BLOCK=_COLUMNS,
                OVERLAP=self._overlap,
                num_warps=4,
                **self._launch,
            )
        return out

    def embedding(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """Rows of a table."""
        num_tokens, hidden = token_ids.shape[0], table.shape[1]
        out = torch.empty(num_tokens, hidden, dtype=table.dtype, device=table.device)
        if num_tokens:
            embedding_kernel[(num_tokens, cdiv(hidden, _COLUMNS))](
                token_ids,
                table,
                out,
                hidden,
                BLOCK=_COLUMNS,
                OVERLAP=self._overlap,
                num_warps=4,
                **self._launch,
            )
        return out

    def mask_tokens(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Tokens forbidden by packed bits."""
        num_rows, vocab_size = logits.shape
        out = torch.empty(num_rows, vocab_size, dtype=logits.dtype, device=logits.device)
        if num_rows:
            mask_tokens_kernel[(num_rows, cdiv(vocab_size, _COLUMNS))](
                logits,
                mask,
                out,
                vocab_size,
                logits.stride(0),
                mask.stride(0),
                BLOCK=_COLUMNS,
                num_warps=4,
            )
        return out

    def penalize(
        self,
        logits: Tensor,
        is_in_prompt: Tensor,
        output_counts: Tensor,
        repetition: Tensor,
        presence: Tensor,
        frequency: Tensor,
    ) -> Tensor:
        """Penalties for tokens that have occurred."""
        num_rows, vocab_size = logits.shape
        out = torch.empty(num_rows, vocab_size, dtype=logits.dtype, device=logits.device)
        if num_rows:
            penalize_kernel[(num_rows, cdiv(vocab_size, _COLUMNS))](
                logits,
                is_in_prompt,
                output_counts,
                repetition,
                presence,
                frequency,
                out,
                vocab_size,
                logits.stride(0),
                BLOCK=_COLUMNS,
                num_warps=4,
            )
        return out
