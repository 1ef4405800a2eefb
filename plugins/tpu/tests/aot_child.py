"""Compiles one kernel for one TPU, without a TPU, and prints what the compiler says, as JSON.

Run in a process of its own: a wrong kernel aborts it.
"""

import json
import os
import sys

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chiplet_tpu.kernels.page_write import PageItems, write_pages
from chiplet_tpu.kernels.paged_attention import Items, paged_attention
from chiplet_tpu.kernels.scaled_matmul import scaled_matmul

# Llama-3.1-8B: 32 query heads, 8 key heads; one chip of four has a quarter.
NUM_KV_HEADS, GROUP_SIZE, PAGES, PAGE_SIZE, MAX_PAGES = 2, 4, 1024, 16, 64
HIDDEN, QKV_OF_A_QUARTER = 4096, 1536


def attention(of, head_dim, queries, num_items):
    kv = of((PAGES, NUM_KV_HEADS, PAGE_SIZE, 2 * head_dim))
    q = of((num_items, NUM_KV_HEADS, queries * GROUP_SIZE, head_dim))
    counts = of((num_items,), jnp.int32)
    step = partial(paged_attention, group_size=GROUP_SIZE, scale=head_dim**-0.5)
    table = of((16, MAX_PAGES), jnp.int32)
    return jax.jit(step).lower(q, kv, table, Items(counts, counts, counts)), 0


def write(of, head_dim):
    kv = of((PAGES, NUM_KV_HEADS, PAGE_SIZE, 2 * head_dim))
    new = of((20, NUM_KV_HEADS, PAGE_SIZE, 2 * head_dim))
    counts = of((20,), jnp.int32)
    table = of((20, PAGE_SIZE, head_dim), jnp.float32)
    step = jax.jit(write_pages, donate_argnums=(0,))
    return step.lower(kv, new, table, PageItems(counts, counts, counts)), kv.size * 2


def matmul(of, x_dtype, weight_dtype, num_rows):
    x, weight = of((num_rows, HIDDEN), x_dtype), of((QKV_OF_A_QUARTER, HIDDEN), weight_dtype)
    scales = of((num_rows,), jnp.float32), of((QKV_OF_A_QUARTER,), jnp.float32)
    step = jax.jit(partial(scaled_matmul, out_dtype=jnp.bfloat16))
    return step.lower(x, scales[0], weight, scales[1]), 0


def lowerings(of):
    for head_dim in (64, 96, 128, 256):
        yield f"decode attention, head dim {head_dim}", partial(attention, of, head_dim, 1, 16)
        yield f"prefill attention, head dim {head_dim}", partial(attention, of, head_dim, 32, 20)
        yield f"rotate and write, head dim {head_dim}", partial(write, of, head_dim)
    for num_rows in (16, 512):
        for x, weight in (("int8", "int8"), ("bfloat16", "int8"), ("bfloat16", "float8_e4m3fn")):
            yield f"{x} x {weight}, {num_rows} rows", partial(matmul, of, x, weight, num_rows)


def bad_kernel(of):
    """jax's attention with a head dim that its compiler cannot lay out."""
    counts = of((16,), jnp.int32), of((16, 8), jnp.int32), of((17,), jnp.int32), of((1,), jnp.int32)
    step = partial(ragged_paged_attention, num_kv_pages_per_block=8, num_queries_per_block=16)
    return jax.jit(step).lower(of((64, 8, 256)), of((64, 16, 4, 256)), *counts), 0


def main(topology, which="good"):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices[:1]), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec())

    def of(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    kernels = lowerings(of) if which == "good" else [("bad", partial(bad_kernel, of))]
    with jax.set_mesh(mesh):
        for name, lower in kernels:
            lowered, donated_bytes = lower()
            compiled = lowered.compile()
            memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
            facts = {
                "name": name,
                "has_kernel": "tpu_custom_call" in compiled.as_text(),
                "donated_bytes": donated_bytes,
                "alias_bytes": memory.alias_size_in_bytes,
                "flops": cost.get("flops"),
                "bytes": cost.get("bytes accessed"),
            }
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["abort"]:
        os.abort()
    main(*sys.argv[1:])
