"""Products with weights of 8 bits, integer or floating point, as a Pallas kernel.

Weights stay in 8 bits until they are in the core's own memory. int8 activations are multiplied as
integers; others are widened to bfloat16, which holds every int8 and every float8 exactly.

Legend: M rows of activations, N outputs, K inputs.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_TILE_M, _TILE_N, _TILE_K = 256, 512, 1024


def scaled_matmul(
    x: jax.Array,
    x_scale: jax.Array | None,
    weight: jax.Array,
    weight_scale: jax.Array,
    *,
    out_dtype: Any,
    interpret: bool = False,
) -> jax.Array:
    """(x * x_scale) (weight * weight_scale)^T.

    Shapes: x `[M, K]`, int8 with int8 weights, else float8 or bfloat16 or float32; x_scale
    `[M] float32`, None for 1; weight `[N, K]` int8 or float8_e4m3fn; weight_scale `[N] float32`;
    returns `[M, N]` in `out_dtype`.
    """
    num_rows, num_outputs = x.shape[0], weight.shape[0]
    tile_m = min(_TILE_M, _round_up(num_rows, 32))
    tile_n, tile_k = _TILE_N, min(_TILE_K, _round_up(x.shape[1], 128))
    x = _padded(x, tile_m, tile_k)
    weight = _padded(weight, tile_n, tile_k)
    rows = jnp.ones(num_rows, jnp.float32) if x_scale is None else x_scale
    rows = _padded(rows.reshape(-1, 1), tile_m, 1)
    columns = _padded(weight_scale.reshape(1, -1), 1, tile_n)
    is_integer = x.dtype == jnp.int8 and weight.dtype == jnp.int8
    grid = (x.shape[0] // tile_m, weight.shape[0] // tile_n, x.shape[1] // tile_k)
    out = pl.pallas_call(
        functools.partial(_kernel, wide=_wide(x.dtype, is_integer)),
        grid=grid,
        in_specs=[
            pl.BlockSpec((tile_m, tile_k), lambda m, n, k: (m, k)),
            pl.BlockSpec((tile_n, tile_k), lambda m, n, k: (n, k)),
            pl.BlockSpec((tile_m, 1), lambda m, n, k: (m, 0)),
            pl.BlockSpec((1, tile_n), lambda m, n, k: (0, n)),
        ],
        out_specs=pl.BlockSpec((tile_m, tile_n), lambda m, n, k: (m, n)),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], weight.shape[0]), out_dtype),
        scratch_shapes=[pltpu.VMEM((tile_m, tile_n), jnp.int32 if is_integer else jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * x.shape[0] * weight.shape[0] * x.shape[1],
            bytes_accessed=x.nbytes * grid[1] + weight.nbytes * grid[0],
            transcendentals=0,
        ),
        interpret=interpret,
        name="chiplet_scaled_matmul",
    )(x, weight, rows, columns)
    return out[:num_rows, :num_outputs]


def _wide(dtype: Any, is_integer: bool) -> Any:
    """Type in which a tile is multiplied; None leaves integers alone."""
    if is_integer:
        return None
    return jnp.float32 if dtype == jnp.float32 else jnp.bfloat16


def _kernel(
    x: Any, weight: Any, x_scale: Any, weight_scale: Any, out: Any, total: Any, *, wide: Any
) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    left, right = x[...], weight[...]
    if wide is not None:
        left, right = left.astype(wide), right.astype(wide)
    total[...] += lax.dot_general(
        left,
        right,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST if wide == jnp.float32 else lax.Precision.DEFAULT,
        preferred_element_type=total.dtype,
    )

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        scaled = total[...].astype(jnp.float32) * x_scale[...] * weight_scale[...]
        out[...] = scaled.astype(out.dtype)


def _padded(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """The matrix with zeros up to multiples of a tile."""
    extra = ((0, -x.shape[0] % rows), (0, -x.shape[1] % columns))
    return jnp.pad(x, extra) if extra != ((0, 0), (0, 0)) else x


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
