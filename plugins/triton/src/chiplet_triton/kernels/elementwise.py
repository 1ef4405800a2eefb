"""Activation, embedding, penalties and masks: a few reads, a little arithmetic, one write."""

import triton
import triton.language as tl

from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs


@triton.jit
def silu_mul_kernel(
    gate_up_ptr, out_ptr, width, row_stride, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    """silu(gate) * up; grid: rows, blocks of columns."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < width
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    source = gate_up_ptr + row * row_stride + columns
    gate = tl.load(source, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=is_inside, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * width + columns, out.to(out_ptr.dtype.element_ty), mask=is_inside)


@triton.jit
def embedding_kernel(
    token_ids_ptr, table_ptr, out_ptr, hidden, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    """Rows of a table; grid: tokens, blocks of columns."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < hidden
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    row = tl.load(token_ids_ptr + token).to(tl.int64)
    values = tl.load(table_ptr + row * hidden + columns, mask=is_inside)
    tl.store(out_ptr + token * hidden + columns, values, mask=is_inside)


@triton.jit
def penalize_kernel(
    logits_ptr,
    is_in_prompt_ptr,
    output_counts_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    out_ptr,
    vocab_size,
    logits_stride,
    BLOCK: tl.constexpr,
):
    """Repetition, then presence and frequency; grid: rows, blocks of the vocabulary."""
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = tokens < vocab_size
    logits = tl.load(logits_ptr + row * logits_stride + tokens, mask=is_inside, other=0.0)
    at = row * vocab_size + tokens
    was_prompt = tl.load(is_in_prompt_ptr + at, mask=is_inside, other=0) != 0
    counts = tl.load(output_counts_ptr + at, mask=is_inside, other=0)
    factor = tl.load(repetition_ptr + row)
    repeated = tl.where(logits > 0, logits / factor, logits * factor)
    result = tl.where(was_prompt | (counts > 0), repeated, logits)
    result -= tl.where(counts > 0, tl.load(presence_ptr + row), 0.0)
    result -= tl.load(frequency_ptr + row) * counts.to(tl.float32)
    tl.store(out_ptr + at, result, mask=is_inside)


@triton.jit
def mask_tokens_kernel(
    logits_ptr,
    mask_ptr,
    out_ptr,
    vocab_size,
    logits_stride,
    mask_stride,
    BLOCK: tl.constexpr,
):
    """-infinity where a bit is 0; grid: rows, blocks of the vocabulary."""
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = tokens < vocab_size
    word = tl.load(mask_ptr + row * mask_stride + tokens // 32, mask=is_inside, other=0)
    is_allowed = ((word >> (tokens % 32)) & 1) != 0
    # What is forbidden is not read: mostly that is nearly everything.
    logits = tl.load(
        logits_ptr + row * logits_stride + tokens, mask=is_inside & is_allowed, other=-float("inf")
    )
    tl.store(out_ptr + row * vocab_size + tokens, logits, mask=is_inside)
