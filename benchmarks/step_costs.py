"""What a step costs the host beside its kernels: `python benchmarks/step_costs.py`.

Runs decode steps of a Llama model whose kernels do nothing, operation by operation and with a fake
replay, and prints the time of one launch and its share per layer. All of it is Python and calls of
small tensor operations, on the host's processors.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chiplet.api import (
    CanonicalLayout,
    Dtype,
    Executable,
    HostInputs,
    Op,
    OpRequest,
    ShapeBucket,
    Step,
    StepLimits,
    StepOutputs,
    doubling,
)
from chiplet.config import ModelConfig
from chiplet.layers.context import LayerContext
from chiplet.models.llama import LlamaForCausalLM
from chiplet.reference.platform import ReferencePlatform
from chiplet.runner.batch_builder import BatchBuilder
from chiplet.runner.executables import Executables
from chiplet.runner.kv_pool import allocate
from chiplet.runner.runner import ModelRunner
from chiplet.runner.sampler import Sampler
from chiplet.runner.slots import SlotTables
from chiplet.runner.step_function import StepFunction
from chiplet.sampling_params import SamplingParams
from chiplet.step import Chunks, PageUpdates, SlotAdmission, StepPlan

NUM_LAYERS = 32
NUM_STEPS = 200
VOCAB = 256


class Null:
    """Kernels that return a tensor made beforehand."""

    def __init__(self, num_tokens: int) -> None:
        self._hidden = torch.zeros(num_tokens, 64)
        self._heads = torch.zeros(num_tokens, 4, 16)
        self._outputs = {
            width: torch.zeros(num_tokens, width) for width in (64, 128, 256, 192, VOCAB)
        }
        self._tokens = torch.zeros(num_tokens, dtype=torch.int32)

    def layouts(self) -> tuple[CanonicalLayout, ...]:
        """One layout."""
        return (CanonicalLayout(),)

    def plan(self, batch: object, layout: object) -> None:
        """Nothing to plan."""

    def attention(self, request: object) -> Any:
        """Attention."""
        heads = self._heads
        return _Calls(self.layouts, self.plan, lambda q, k, v, kv, plan: heads)

    def linear(self, request: Any) -> Any:
        """A linear layer."""
        out = self._outputs[request.out_features]
        return _Calls(self.layouts, self.plan, lambda x, packed: out)

    def op(self, request: OpRequest) -> Any:
        """Any operation that decoding greedily needs."""
        hidden, wide = self._hidden, self._outputs[128]
        return {
            Op.FEED: lambda ids, last_tokens: ids,
            Op.ARGMAX: lambda logits: self._tokens,
            Op.EMBEDDING: lambda ids, table: hidden,
            Op.RMS_NORM: lambda x, weight, eps: x,
            Op.ADD_RMS_NORM: lambda x, residual, weight, eps: (x, residual),
            Op.ROTARY: lambda q, k, positions, table: (q, k),
            Op.SILU_MUL: lambda x: wide,
            Op.SAMPLE: lambda *_: self._tokens,
        }.get(request.op)


class _Calls:
    def __init__(self, layouts: Any, plan: Any, run: Any) -> None:
        self.layouts, self.plan, self.run = layouts, plan, run


class FakeReplay:
    """An executable whose device work is free."""

    def __init__(self, step: Step) -> None:
        self.bucket = step.bucket
        self._buffer = np.empty_like(step.padding().buffer)
        tokens = torch.zeros(self.bucket.num_requests, dtype=torch.int32)
        self._outputs = StepOutputs(tokens, None)

    def launch(self, host: HostInputs) -> StepOutputs:
        """Take the inputs."""
        self._buffer[:] = host.buffer
        return self._outputs


class ReplayPlatform(ReferencePlatform):
    """Replays every decode step."""

    def buckets(self, limits: StepLimits) -> Sequence[ShapeBucket]:
        """Decode buckets."""
        return [
            ShapeBucket(num_tokens=n, num_requests=n, num_decodes=n, max_pages=limits.max_pages)
            for n in doubling(1, limits.max_requests)
        ]

    def prepare(self, step: Step) -> Executable:
        """The fake."""
        return FakeReplay(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    print("requests  how     launch us  us per layer (medians)")
    for num_requests in (1, 64, 256):
        layers = launch_s(num_requests, NUM_LAYERS, ReferencePlatform(), steps)
        few = launch_s(num_requests, 2, ReferencePlatform(), steps)
        per_layer = (layers - few) / (NUM_LAYERS - 2)
        print(f"{num_requests:8}  eager   {layers * 1e6:9.0f}  {per_layer * 1e6:12.1f}")
        replay = launch_s(num_requests, NUM_LAYERS, ReplayPlatform(), steps)
        print(f"{num_requests:8}  replay  {replay * 1e6:9.0f}  {replay / NUM_LAYERS * 1e6:12.1f}")


def launch_s(num_requests: int, num_layers: int, platform: ReferencePlatform, steps: int) -> float:
    """Median seconds of one launch of decoding requests."""
    runner = make_runner(num_requests, num_layers, platform)
    runner.prepare(in_background=False)
    durations: list[float] = []
    for step_id in range(steps):
        plan = decode_plan(step_id, num_requests)
        start = time.perf_counter()
        runner.launch(plan)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations[5:])


def make_runner(num_requests: int, num_layers: int, platform: ReferencePlatform) -> ModelRunner:
    bindings: Any = Null(num_requests)
    context = LayerContext(
        bindings=bindings,
        dtype=Dtype.FLOAT32,
        kv_dtype=Dtype.FLOAT32,
        page_size=16,
        max_positions=1024,
        device=platform.torch_device,
    )
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        context_length=1024,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
    )
    model = LlamaForCausalLM(config, context)
    kv = allocate(model.attention_layers(), 1, platform.torch_device)
    tables = SlotTables(
        num_slots=num_requests, max_pages=64, vocab_size=VOCAB, kv=kv.layers, platform=platform
    )
    builder = BatchBuilder(tables, page_size=16, padding_page=kv.padding_page)
    function = StepFunction(
        model,
        Sampler(bindings, Dtype.FLOAT32),
        layouts=kv.layouts,
        state=tables.state,
        builder=builder,
        platform=platform,
    )
    limits = StepLimits(
        max_tokens=num_requests,
        max_requests=num_requests,
        max_pages=64,
        max_prompt_rows=0,
        page_size=16,
    )
    executables = Executables(function, platform, limits, is_eager=False)
    return ModelRunner(executables, platform=platform, tables=tables, builder=builder)


def decode_plan(step_id: int, num_requests: int) -> StepPlan:
    slots = np.arange(num_requests, dtype=np.int32)
    ones, none = np.ones_like(slots), np.empty(0, dtype=np.int32)
    admissions = [
        SlotAdmission(
            slot=slot,
            sampling=SamplingParams(temperature=0),
            seed=slot,
            prompt_token_ids=ones[:1],
            output_token_ids=none,
            end_token_ids=(),
        )
        for slot in slots.tolist()
        if step_id == 0
    ]
    return StepPlan(
        step_id=step_id,
        chunks=Chunks(
            slots=slots,
            starts=ones * (100 + step_id),
            lengths=ones,
            is_sampled=ones > 0,
            is_fed=ones > 0,
            output_indices=ones * step_id,
        ),
        num_decodes=num_requests,
        token_ids=np.zeros_like(slots),
        admissions=tuple(admissions),
        page_updates=PageUpdates(none, none, none),
        prompt_targets=none,
    )


if __name__ == "__main__":
    main()
