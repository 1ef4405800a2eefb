"""Sampling without sorting: thresholds are found by bisection, then one token is drawn.

A row's kept tokens are a prefix of its tokens in order of logit, ties by place. The prefix is
described by its lowest logit and how many tokens of that very logit belong to it.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs


@triton.jit
def _ordered(x):
    """Integers in the order of the floats, `int32`."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _scaled(logits, tokens, vocab_size, temperature):
    x = tl.load(logits + tokens, mask=tokens < vocab_size, other=-float("inf"))
    return x / temperature


@triton.jit
def _above(logits, vocab_size, temperature, peak, key, BLOCK: tl.constexpr):
    """How many tokens have an ordered logit above `key`, and their mass."""
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    for first in range(0, vocab_size, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        x = _scaled(logits, tokens, vocab_size, temperature)
        is_above = (_ordered(x) > key) & (tokens < vocab_size)
        count += is_above.to(tl.int32)
        mass += tl.where(is_above, tl.exp(x - peak), 0.0)
    return tl.sum(count, axis=0), tl.sum(mass, axis=0)


@triton.jit
def _greedy(logits, vocab_size, BLOCK: tl.constexpr):
    """The first of the likeliest tokens, and its logit; token 0 in a row of NaN."""
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    for first in range(0, vocab_size, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        x = tl.load(logits + tokens, mask=tokens < vocab_size, other=-float("inf"))
        is_better = x > best
        best = tl.where(is_better, x, best)
        where = tl.where(is_better, tokens, where)
    peak = tl.max(best, axis=0)
    token = tl.min(tl.where(best == peak, where, 0x7FFFFFFF), axis=0)
    return tl.minimum(token, vocab_size - 1), peak


@triton.jit
def argmax_kernel(
    logits_ptr,
    best_ptr,
    where_ptr,
    arrivals_ptr,
    out_ptr,
    vocab_size,
    logits_stride,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The first of the likeliest tokens; grid: rows, splits of the vocabulary, a power of 2.

    The split that arrives last compares what all have found. `arrivals` holds zeros before and
    after.
    """
    row = tl.program_id(0)
    split = tl.program_id(1)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    share = tl.cdiv(vocab_size, SPLITS * BLOCK) * BLOCK
    logits = logits_ptr + row.to(tl.int64) * logits_stride
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    where = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    for first in range(split * share, min(split * share + share, vocab_size), BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        x = tl.load(logits + tokens, mask=tokens < vocab_size, other=-float("inf")).to(tl.float32)
        is_better = (x > best) | ((where == 0x7FFFFFFF) & (tokens < vocab_size))
        best = tl.where(is_better, x, best)
        where = tl.where(is_better, tokens, where)
    peak = tl.max(best, axis=0)
    token = tl.min(tl.where(best == peak, where, 0x7FFFFFFF), axis=0)
    if SPLITS > 1:
        tl.store(best_ptr + row * SPLITS + split, peak)
        tl.store(where_ptr + row * SPLITS + split, token)
        tl.debug_barrier()  # both stores come before the arrival
        arrived = tl.atomic_add(arrivals_ptr + row, 1, sem="acq_rel", scope="gpu")
        if arrived < SPLITS - 1:
            return
        tl.debug_barrier()
        tl.store(arrivals_ptr + row, 0)
        at = row * SPLITS + tl.arange(0, SPLITS)
        bests = tl.load(best_ptr + at, cache_modifier=".cg")
        wheres = tl.load(where_ptr + at, cache_modifier=".cg")
        token = tl.min(tl.where(bests == tl.max(bests, axis=0), wheres, 0x7FFFFFFF), axis=0)
    tl.store(out_ptr + row, tl.minimum(token, vocab_size - 1))


@triton.jit
def _threshold(logits, vocab_size, temperature, peak, top_k, top_p, BLOCK: tl.constexpr):
    """Ordered logit of the last token that top-k and top-p keep, and how many of its ties."""
    top = _ordered(peak)
    low = tl.full([], -0x80000000, tl.int64)
    high = top.to(tl.int64)
    is_limited = (top_k > 0) & (top_k < vocab_size)
    if is_limited:
        # The lowest key with fewer than top_k tokens above it.
        while low < high:
            middle = (low + high) >> 1
            count, _ = _above(logits, vocab_size, temperature, peak, middle.to(tl.int32), BLOCK)
            if count < top_k:
                high = middle
            else:
                low = middle + 1
        low = high
    key = low.to(tl.int32)
    count, mass = _above(logits, vocab_size, temperature, peak, key, BLOCK)
    ties = tl.full([], 0x7FFFFFFF, tl.int32)
    if is_limited:
        ties = top_k - count
        # A key as float: what its ties weigh.
        bits = tl.where(key >= 0, key, key ^ 0x7FFFFFFF)
        mass += ties.to(tl.float32) * tl.exp(bits.to(tl.float32, bitcast=True) - peak)
    if top_p < 1.0:
        wanted = top_p * mass
        high = top.to(tl.int64)
        while low < high:
            middle = (low + high) >> 1
            _, above = _above(logits, vocab_size, temperature, peak, middle.to(tl.int32), BLOCK)
            if above < wanted:
                high = middle
            else:
                low = middle + 1
        lowest = high.to(tl.int32)
        _, above = _above(logits, vocab_size, temperature, peak, lowest, BLOCK)
        bits = tl.where(lowest >= 0, lowest, lowest ^ 0x7FFFFFFF)
        each = tl.exp(bits.to(tl.float32, bitcast=True) - peak)
        room = tl.maximum(tl.ceil((wanted - above) / each), 1.0)
        room = tl.minimum(room, 1.0e9).to(tl.int32)
        ties = tl.where(lowest == key, tl.minimum(ties, room), room)
        key = lowest
    return key, ties


@triton.jit
def _weights(
    logits, first, vocab_size, temperature, peak, key, ties, min_p, seen, BLOCK: tl.constexpr
):
    """Kept weights of one block, and ties seen up to its end."""
    tokens = first + tl.arange(0, BLOCK)
    x = _scaled(logits, tokens, vocab_size, temperature)
    weights = tl.exp(x - peak)
    ordered = _ordered(x)
    is_tie = ((ordered == key) & (tokens < vocab_size)).to(tl.int32)
    rank = seen + tl.cumsum(is_tie, axis=0)
    is_kept = (ordered > key) | ((is_tie != 0) & (rank <= ties))
    is_kept &= (weights >= min_p) & (tokens < vocab_size)
    return tl.where(is_kept, weights, 0.0), seen + tl.sum(is_tie, axis=0)


@triton.jit
def sample_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    uniform_ptr,
    out_ptr,
    vocab_size,
    logits_stride,
    HAS_FILTERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row; see `chiplet.api.ops.Sample`."""
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * logits_stride
    temperature = tl.load(temperature_ptr + row)
    token, peak = _greedy(logits, vocab_size, BLOCK)
    if temperature > 0:
        peak = peak / temperature
        key = tl.full([], -0x80000000, tl.int32)
        ties = tl.full([], 0x7FFFFFFF, tl.int32)
        min_p = 0.0
        if HAS_FILTERS:
            min_p = tl.load(min_p_ptr + row)
            top_k = tl.load(top_k_ptr + row)
            top_p = tl.load(top_p_ptr + row)
            key, ties = _threshold(logits, vocab_size, temperature, peak, top_k, top_p, BLOCK)
        # float64, because a running sum over a large vocabulary loses small tokens in float32.
        total = tl.full([], 0.0, tl.float64)
        seen = tl.full([], 0, tl.int32)
        for first in range(0, vocab_size, BLOCK):
            weights, seen = _weights(
                logits, first, vocab_size, temperature, peak, key, ties, min_p, seen, BLOCK
            )
            total += tl.sum(weights.to(tl.float64), axis=0)
        wanted = tl.load(uniform_ptr + row).to(tl.float64) * total
        running = tl.full([], 0.0, tl.float64)
        seen = tl.full([], 0, tl.int32)
        for first in range(0, vocab_size, BLOCK):
            weights, seen = _weights(
                logits, first, vocab_size, temperature, peak, key, ties, min_p, seen, BLOCK
            )
            mass = tl.sum(weights.to(tl.float64), axis=0)
            if (running <= wanted) & (running + mass > wanted):
                before = running + tl.cumsum(weights.to(tl.float64), axis=0)
                place = tl.sum((before <= wanted).to(tl.int32), axis=0)
                token = tl.minimum(first + tl.minimum(place, BLOCK - 1), vocab_size - 1)
            running += mass
    tl.store(out_ptr + row, token.to(tl.int32))
