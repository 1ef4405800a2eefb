"""Kernels interpreted on a CPU, against float64 NumPy."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="jax is not installed; run 'make test-tpu'")
import jax.numpy as jnp  # noqa: E402

from chiplet_tpu.kernels.page_write import PageItems, write_pages  # noqa: E402
from chiplet_tpu.kernels.paged_attention import Items, paged_attention  # noqa: E402
from chiplet_tpu.kernels.scaled_matmul import scaled_matmul  # noqa: E402

PAGE_SIZE, NUM_KV_HEADS, GROUP_SIZE = 16, 2, 3
TOLERANCE = {"float32": 5e-6, "bfloat16": 2e-2}


def filled_cache(random, lengths, head_dim):
    """A cache that is NaN wherever no token is, and its page table."""
    counts = [-(-length // PAGE_SIZE) for length in lengths]
    shape = (sum(counts) + 3, NUM_KV_HEADS, PAGE_SIZE, 2 * head_dim)
    kv = np.full(shape, np.nan, np.float32)
    table = np.zeros((len(lengths), max(counts)), np.int32)
    free = list(random.permutation(shape[0] - 1) + 1)
    for request, length in enumerate(lengths):
        for index in range(counts[request]):
            page = table[request, index] = free.pop()
            rows = min(PAGE_SIZE, length - index * PAGE_SIZE)
            kv[page, :, :rows] = random.normal(size=(NUM_KV_HEADS, rows, 2 * head_dim))
    return kv, table


def expected_attention(q, kv, table, items, scale, window):
    out = np.zeros(q.shape)
    head_dim = q.shape[-1]
    for item, (request, first, count) in enumerate(zip(*items, strict=True)):
        keys = kv[table[request]].swapaxes(0, 1).reshape(NUM_KV_HEADS, -1, 2 * head_dim)
        for row in range(count * GROUP_SIZE):
            at = first + row // GROUP_SIZE
            low = 0 if window is None else max(0, at - window + 1)
            seen = keys[:, low : at + 1]
            scores = np.einsum("kd,kld->kl", q[item, :, row], seen[..., :head_dim]) * scale
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[item, :, row] = np.einsum("kl,kld->kd", weights, seen[..., head_dim:])
    return out


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("queries", [1, 8], ids=["decode", "prefill"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_attention(head_dim, dtype, queries, window):
    random = np.random.default_rng()
    lengths = [1, 16, 17, 129, 260]
    kv, table = filled_cache(random, lengths, head_dim)
    counts = [min(queries, length) for length in lengths]
    firsts = [length - count for length, count in zip(lengths, counts, strict=True)]
    # A padding item in the middle: it may yield anything finite and must disturb nobody.
    requests = [0, 1, 0, 2, 3, 4]
    firsts.insert(2, 0)
    counts.insert(2, 0)
    shape = (len(requests), NUM_KV_HEADS, queries * GROUP_SIZE, head_dim)
    q = jnp.asarray(random.normal(size=shape), dtype)
    cache = jnp.asarray(kv, dtype)
    items = Items(*(jnp.asarray(each, jnp.int32) for each in (requests, firsts, counts)))
    out = paged_attention(
        q,
        cache,
        jnp.asarray(table),
        items,
        group_size=GROUP_SIZE,
        scale=head_dim**-0.5,
        window=window,
        interpret=True,
    )
    got = np.asarray(out, np.float64)
    wide = [np.asarray(each, np.float64) for each in (q, cache)]
    rows = (requests, firsts, counts)
    expected = expected_attention(*wide, table, rows, head_dim**-0.5, window)
    assert np.isfinite(got).all()
    for item, count in enumerate(counts):
        used = slice(0, count * GROUP_SIZE)
        np.testing.assert_allclose(
            got[item, :, used], expected[item, :, used], atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_rotated_keys_and_values_land_in_their_rows_and_nowhere_else(head_dim, dtype):
    random = np.random.default_rng()
    num_pages, half = 6, head_dim // 2
    shape = (num_pages, NUM_KV_HEADS, PAGE_SIZE, 2 * head_dim)
    kv = jnp.asarray(random.normal(size=shape), dtype).at[5].set(jnp.nan)
    page_ids, firsts, ends = [3, 1, 4, 0], [0, 5, 15, 7], [16, 9, 16, 7]
    new = jnp.asarray(random.normal(size=(4, *shape[1:])), dtype)
    angles = random.uniform(0, 6, size=(4, PAGE_SIZE, half))
    cos_sin = jnp.asarray(np.concatenate([np.cos(angles), np.sin(angles)], -1), jnp.float32)
    items = PageItems(*(jnp.asarray(each, jnp.int32) for each in (page_ids, firsts, ends)))
    got = np.asarray(write_pages(kv, new, cos_sin, items, interpret=True), np.float64)
    expected = np.asarray(kv, np.float64).copy()
    wide = np.asarray(new, np.float64)
    for item, page in enumerate(page_ids):
        for row in range(firsts[item], ends[item]):
            cos, sin = np.cos(angles[item, row]), np.sin(angles[item, row])
            left, right = wide[item, :, row, :half], wide[item, :, row, half:head_dim]
            expected[page, :, row, :half] = left * cos - right * sin
            expected[page, :, row, half:head_dim] = right * cos + left * sin
            expected[page, :, row, head_dim:] = wide[item, :, row, head_dim:]
    np.testing.assert_allclose(got, expected, atol=TOLERANCE[dtype])
    untouched = [2, 0, 5]
    np.testing.assert_array_equal(got[untouched], np.asarray(kv, np.float64)[untouched])


@pytest.mark.parametrize("num_rows", [1, 7, 129])
@pytest.mark.parametrize("shape", [(192, 320), (640, 1100)], ids=str)
@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype"),
    [
        ("int8", "int8"),
        ("bfloat16", "int8"),
        ("float32", "int8"),
        ("bfloat16", "float8_e4m3fn"),
        ("float8_e4m3fn", "float8_e4m3fn"),
    ],
)
def test_products_with_weights_of_8_bits(x_dtype, weight_dtype, shape, num_rows):
    random = np.random.default_rng()
    spread = {"int8": 60.0}
    x = random.normal(size=(num_rows, shape[1])) * spread.get(x_dtype, 1.0)
    weight = random.normal(size=shape) * spread.get(weight_dtype, 1.0)
    x, weight = (
        jnp.asarray(each.round().clip(-127, 127) if dtype == "int8" else each, dtype)
        for each, dtype in ((x, x_dtype), (weight, weight_dtype))
    )
    x_scale, weight_scale = random.uniform(0.5, 1.5, num_rows), random.uniform(0.5, 1.5, shape[0])
    got = scaled_matmul(
        x,
        jnp.asarray(x_scale, jnp.float32),
        weight,
        jnp.asarray(weight_scale, jnp.float32),
        out_dtype=jnp.float32,
        interpret=True,
    )
    wide = [np.asarray(each.astype(jnp.float32), np.float64) for each in (x, weight)]
    expected = wide[0] @ wide[1].T * x_scale[:, None] * weight_scale
    assert got.shape == expected.shape
    error = np.abs(np.asarray(got, np.float64) - expected).max()
    assert error <= 1e-5 * np.abs(expected).max()
