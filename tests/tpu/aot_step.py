"""Compiles the whole step of Llama-3.1-8B for four TPUs that are not there, and prints facts.

    python -m tests.tpu.aot_step v6e:2x2 [pallas|ragged] [LAYERS]

One JSON line per bucket, of the whole model or of its first layers. No weight is ever made: the
model is built of shapes alone. Run in a process of its own, since a wrong kernel aborts it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from typing import Any, cast

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax
import jax.numpy as jnp
import torch
from jax.experimental import topologies

from chiplet.api import (
    GREEDY,
    BuildContext,
    DeviceProbe,
    Dtype,
    ShapeBucket,
)
from chiplet.config import ModelConfig, RopeScaling
from chiplet.layers.context import LayerContext
from chiplet.models.llama import LlamaForCausalLM
from chiplet.parallel.group import RankGroup
from chiplet.reference.ops import REFERENCE_OPS
from chiplet.runner.batch_builder import BatchBuilder
from chiplet.runner.kv_pool import allocate
from chiplet.runner.sampler import Sampler
from chiplet.runner.slots import SlotTables
from chiplet.runner.step_function import StepFunction
from chiplet_tpu import providers
from chiplet_tpu.chips import GENERATIONS, Chip
from chiplet_tpu.communicator import MeshCommunicator
from chiplet_tpu.compilation import arrays
from chiplet_tpu.compilation.jax_program import StepProgram, lower
from chiplet_tpu.compilation.lowerings import environment
from chiplet_tpu.compilation.mesh import SPLIT, WHOLE, RankMesh

NUM_RANKS, NUM_PAGES, PAGE_SIZE, NUM_SLOTS = 4, 4096, 16, 64
CONTEXT_LENGTH = 4096
LLAMA_8B = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    context_length=131072,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_context_length=8192,
    ),
)
MAX_PAGES = CONTEXT_LENGTH // PAGE_SIZE
BUCKETS = {
    "decode 64": ShapeBucket(num_tokens=64, num_requests=64, num_decodes=64, max_pages=MAX_PAGES),
    "prefill 512": ShapeBucket(
        num_tokens=512, num_requests=16, num_decodes=0, max_pages=MAX_PAGES, sampling=GREEDY
    ),
}
ACCELERATORS = {"v5e:2x2": "v5litepod-4", "v6e:2x2": "v6e-4", "tpu7x:2x2x1": "tpu7x-8"}
CHIPS = {chip.name.lower(): chip for chip in GENERATIONS.values()}


class Bindings:
    """What a chip would get, by verdict; one attention provider is named."""

    def __init__(self, attention_name: str) -> None:
        device = DeviceProbe(device_type="tpu", index=0, name="", total_memory_bytes=0)
        self._offers = {
            "attention": [e for e in providers.attention(device) if e.name == attention_name],
            "linear": providers.linear(device),
            "op": providers.ops(device),
        }
        self._context = BuildContext(cast(Any, None), lambda request: REFERENCE_OPS[request.op])
        self._made: dict[Any, Any] = {}

    def _best(self, family: str, request: Any) -> Any:
        if request not in self._made:
            able = [each for each in self._offers[family] if request.features <= each.accepts]
            scores = [getattr(each.assess(request), "score", -1) for each in able]
            best = able[scores.index(max(scores))]
            self._made[request] = best.build(request, self._context)
        return self._made[request]

    def attention(self, request: Any) -> Any:
        return self._best("attention", request)

    def linear(self, request: Any) -> Any:
        return self._best("linear", request)

    def op(self, request: Any) -> Any:
        return self._best("op", request)


class HostPlatform:
    """As much of a platform as the tables need."""

    name = "tpu"
    torch_device = torch.device("jax")


class Skeleton:
    """The step of a model that is shapes alone.

    Attributes:
        function: core's step.
        joined: tensors that differ between ranks.
    """

    def __init__(self, config: ModelConfig, attention_name: str) -> None:
        self.joined = torch.utils.weak.WeakIdKeyDictionary()
        self.function: StepFunction
        environment().enable_torch_modes()
        jax.eval_shape(lambda: self._build(config, attention_name))

    def _join(self, shards: Any) -> torch.Tensor:
        tensor = arrays.wrap(arrays.array_of(shards[0]))
        self.joined[tensor] = True
        return tensor

    def _build(self, config: ModelConfig, attention_name: str) -> None:
        # They serve this model alone, and so have not all that core's own have.
        bindings, platform = cast(Any, Bindings(attention_name)), cast(Any, HostPlatform())
        device = HostPlatform.torch_device
        ranks = RankGroup(
            size=NUM_RANKS,
            local_ranks=tuple(range(NUM_RANKS)),
            communicator=MeshCommunicator(),
            join_shards=self._join,
        )
        context = LayerContext(
            bindings=bindings,
            dtype=Dtype.BFLOAT16,
            kv_dtype=Dtype.BFLOAT16,
            page_size=PAGE_SIZE,
            max_positions=CONTEXT_LENGTH,
            device=device,
            ranks=ranks,
        )
        model = LlamaForCausalLM(config, context)
        for places in model.weight_map().values():
            for holder, part in places:
                weight = jnp.zeros(holder.part_shapes[part], jnp.bfloat16)
                holder.load(part, arrays.wrap(weight))
        kv = allocate(model.attention_layers(), NUM_PAGES, device)
        tables = SlotTables(
            num_slots=NUM_SLOTS,
            max_pages=MAX_PAGES,
            vocab_size=config.vocab_size,
            kv=kv.layers,
            platform=platform,
        )
        self.function = StepFunction(
            model,
            Sampler(bindings, Dtype.BFLOAT16),
            layouts=kv.layouts,
            state=tables.state,
            builder=BatchBuilder(tables, page_size=PAGE_SIZE, padding_page=kv.padding_page),
            platform=platform,
        )


def compile_bucket(skeleton: Skeleton, bucket: ShapeBucket, mesh: RankMesh) -> tuple[Any, int]:
    """The program of all ranks, and the bytes of KV that one of them holds."""
    step = skeleton.function.for_bucket(bucket)
    tensors = [each for each in step.constants() if arrays.is_held(each)]
    specs = [SPLIT if each in skeleton.joined else WHOLE for each in tensors]

    def struct(tensor: torch.Tensor, spec: Any) -> jax.ShapeDtypeStruct:
        array = arrays.array_of(tensor)
        rows = array.shape[0] * (NUM_RANKS if spec == SPLIT else 1)
        sharding = mesh.split if spec == SPLIT else mesh.replicated
        return jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype, sharding=sharding)

    program = StepProgram(step, tensors)
    written, read = program.split.written(step.state), program.split.read(step.state)
    is_page = [SPLIT] * len(step.state.kv) + [WHOLE] * program.split.num_tables
    arguments = (
        [struct(each, spec) for each, spec in zip(tensors, specs, strict=True)],
        [struct(each, spec) for each, spec in zip(written, is_page, strict=True)],
        [struct(each, WHOLE) for each in read],
        jax.ShapeDtypeStruct((step.layout.size,), jnp.int32, sharding=mesh.replicated),
    )
    kv_bytes = sum(arrays.array_of(each).size * 2 for each in step.state.kv)
    with jax.set_mesh(mesh.mesh):
        return lower(program, mesh, specs=specs, arguments=arguments).compile(), kv_bytes


def facts_of(compiled: Any, kv_bytes: int, chip: Chip) -> dict[str, Any]:
    """What the compiler says, and the time below which the chip cannot be."""
    text, memory, cost = compiled.as_text(), compiled.memory_analysis(), compiled.cost_analysis()
    flops, moved = cost["flops"], cost["bytes accessed"]
    return {
        "kernels": text.count("tpu_custom_call"),
        "all_reduces": text.count("all-reduce"),
        "host_calls": sum(text.count(each) for each in ("infeed", "outfeed", "SendToHost")),
        "kv_bytes": kv_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "memory_bytes": chip.memory_bytes // chip.cores,
        "flops": flops,
        "bytes": moved,
        "floor_ms": 1e3
        * max(
            flops / (chip.bfloat16_flops / chip.cores),
            moved / (chip.memory_bytes_per_s / chip.cores),
        ),
    }


def main(
    topology: str, attention_name: str = "ragged", num_layers: str = str(LLAMA_8B.num_layers)
) -> None:
    os.environ["TPU_ACCELERATOR_TYPE"] = ACCELERATORS[topology]
    chip = CHIPS[topology.partition(":")[0]]
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = RankMesh(devices[:NUM_RANKS])
    skeleton = Skeleton(replace(LLAMA_8B, num_layers=int(num_layers)), attention_name)
    for name, bucket in BUCKETS.items():
        begin = time.monotonic()
        compiled, kv_bytes = compile_bucket(skeleton, bucket, mesh)
        facts: dict[str, Any] = {"topology": topology, "attention": attention_name, "bucket": name}
        facts["seconds"] = round(time.monotonic() - begin, 1)
        print(json.dumps(facts | facts_of(compiled, kv_bytes, chip)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
