"""Operations by the plugin's own kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chiplet.api import BuildContext, Dtype, Feature, No, Op, OpImpl, OpRequest, Tier, Verdict, Yes
from chiplet_cpu import native


def _make_rms_norm(code: int) -> OpImpl:
    kernel = native.library.rms_norm

    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm; see `chiplet.api.ops.RmsNorm`."""
        rows, width = x.shape
        out = torch.empty((rows, width), dtype=x.dtype)
        at, to = x.data_ptr(), out.data_ptr()
        kernel(code, at, x.stride(0), 0, 0, weight.data_ptr(), eps, to, 0, rows, width)
        return out

    return rms_norm


def _make_add_rms_norm(code: int) -> OpImpl:
    kernel = native.library.rms_norm

    def add_rms_norm(
        x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """A residual sum and its norm; see `chiplet.api.ops.AddRmsNorm`."""
        rows, width = x.shape
        out = torch.empty((rows, width), dtype=x.dtype)
        total = torch.empty((rows, width), dtype=x.dtype)
        kernel(
            code,
            x.data_ptr(),
            x.stride(0),
            residual.data_ptr(),
            residual.stride(0),
            weight.data_ptr(),
            eps,
            out.data_ptr(),
            total.data_ptr(),
            rows,
            width,
        )
        return out, total

    return add_rms_norm


def _make_rotary(code: int) -> OpImpl:
    kernel = native.library.rotary

    def rotated(x: Tensor, positions: int, cos_sin: int) -> Tensor:
        rows, num_heads, head_dim = x.shape
        out = torch.empty((rows, num_heads, head_dim), dtype=x.dtype)
        row_stride, head_stride, _ = x.stride()
        at, to = x.data_ptr(), out.data_ptr()
        kernel(code, at, row_stride, head_stride, num_heads, head_dim, positions, cos_sin, rows, to)
        return out

    def rotary(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation of queries and keys; see `chiplet.api.ops.Rotary`."""
        places, table = positions.data_ptr(), cos_sin.data_ptr()
        return rotated(q, places, table), rotated(k, places, table)

    return rotary


def make_silu_mul(code: int) -> OpImpl:
    """silu(gate) * up, for numbers of the type with this code; see `native.DTYPE_CODES`."""
    kernel = native.library.silu_mul

    def silu_mul(gate_up: Tensor) -> Tensor:
        """silu(gate) * up; see `chiplet.api.ops.SiluMul`."""
        rows, both = gate_up.shape
        width = both // 2
        out = torch.empty((rows, width), dtype=gate_up.dtype)
        kernel(code, gate_up.data_ptr(), gate_up.stride(0), rows, width, out.data_ptr())
        return out

    return silu_mul


def _make_feed(code: int) -> OpImpl:
    kernel = native.library.feed

    def feed(token_ids: Tensor, last_tokens: Tensor) -> Tensor:
        """Token ids with those of slots looked up; see `chiplet.api.ops.Feed`."""
        out = torch.empty(token_ids.shape, dtype=torch.int32)
        kernel(token_ids.data_ptr(), last_tokens.data_ptr(), len(token_ids), out.data_ptr())
        return out

    return feed


def _make_embedding(code: int) -> OpImpl:
    kernel = native.library.take_rows

    def embedding(token_ids: Tensor, table: Tensor) -> Tensor:
        """Rows of a table; see `chiplet.api.ops.Embedding`."""
        count, width = len(token_ids), table.shape[1]
        out = torch.empty((count, width), dtype=table.dtype)
        size = table.itemsize
        stride, row_bytes = table.stride(0) * size, width * size
        at, to = table.data_ptr(), out.data_ptr()
        kernel(at, stride, row_bytes, token_ids.data_ptr(), count, to)
        return out

    return embedding


def _make_penalize(code: int) -> OpImpl:
    kernel = native.library.penalize

    def penalize(
        logits: Tensor,
        is_in_prompt: Tensor,
        output_counts: Tensor,
        repetition: Tensor,
        presence: Tensor,
        frequency: Tensor,
    ) -> Tensor:
        """Penalties for tokens that have occurred; see `chiplet.api.ops.Penalize`."""
        rows, vocab = logits.shape
        out = torch.empty((rows, vocab), dtype=torch.float32)
        kernel(
            logits.data_ptr(),
            logits.stride(0),
            is_in_prompt.data_ptr(),
            is_in_prompt.stride(0),
            output_counts.data_ptr(),
            output_counts.stride(0),
            repetition.data_ptr(),
            presence.data_ptr(),
            frequency.data_ptr(),
            rows,
            vocab,
            out.data_ptr(),
        )
        return out

    return penalize


def _make_mask_tokens(code: int) -> OpImpl:
    kernel = native.library.mask_tokens

    def mask_tokens(logits: Tensor, mask: Tensor) -> Tensor:
        """Forbids tokens by packed bits; see `chiplet.api.ops.MaskTokens`."""
        rows, vocab = logits.shape
        out = torch.empty((rows, vocab), dtype=torch.float32)
        at, to = logits.data_ptr(), out.data_ptr()
        kernel(at, logits.stride(0), mask.data_ptr(), mask.stride(0), rows, vocab, to)
        return out

    return mask_tokens


def _make_argmax(code: int) -> OpImpl:
    kernel = native.library.argmax

    def argmax(logits: Tensor) -> Tensor:
        """The likeliest token of each row; see `chiplet.api.ops.Argmax`."""
        rows, vocab = logits.shape
        out = torch.empty(rows, dtype=torch.int32)
        kernel(code, logits.data_ptr(), logits.stride(0), rows, vocab, out.data_ptr())
        return out

    return argmax


def _make_sample(code: int) -> OpImpl:
    kernel = native.library.sample

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
        rows, vocab = logits.shape
        out = torch.empty(rows, dtype=torch.int32)
        kernel(
            logits.data_ptr(),
            logits.stride(0),
            rows,
            vocab,
            temperature.data_ptr(),
            top_k.data_ptr(),
            top_p.data_ptr(),
            min_p.data_ptr(),
            uniform.data_ptr(),
            int(has_filters),
            out.data_ptr(),
        )
        return out

    return sample


_MAKERS: dict[Op, Callable[[int], OpImpl]] = {
    Op.FEED: _make_feed,
    Op.EMBEDDING: _make_embedding,
    Op.ARGMAX: _make_argmax,
    Op.RMS_NORM: _make_rms_norm,
    Op.ADD_RMS_NORM: _make_add_rms_norm,
    Op.ROTARY: _make_rotary,
    Op.SILU_MUL: make_silu_mul,
    Op.PENALIZE: _make_penalize,
    Op.MASK_TOKENS: _make_mask_tokens,
    Op.SAMPLE: _make_sample,
}


_FLOAT32_ONLY = frozenset({Op.PENALIZE, Op.MASK_TOKENS, Op.SAMPLE})


class NativeOpsProvider:
    """Serves fused operations, each one pass over memory."""

    name = "native"
    accepts: frozenset[Feature] = frozenset()

    def assess(self, request: OpRequest) -> Verdict:
        """Yes for what it has, where the kernels could be built."""
        if not native.is_available():
            return No.because("build", native.explanation(), native.remedy())
        if request.op not in _MAKERS:
            return No.because("op", "the reference is as good")
        if request.op in _FLOAT32_ONLY and request.dtype is not Dtype.FLOAT32:
            return No.because("dtype", f"{request.dtype}; logits are float32 there")
        return Yes(Tier.VENDOR, native.instruction_set())

    def build(self, request: OpRequest, context: BuildContext) -> OpImpl:
        """A function bound to the request's type."""
        return _MAKERS[request.op](native.DTYPE_CODES[request.dtype])
