"""The whole step as one function of tensors, and its form for one bucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from chiplet.api import (
    AttentionImpl,
    AttentionPlan,
    DeviceState,
    ForwardBatch,
    HostInputs,
    HostLengths,
    HostPlanning,
    InputLayout,
    KvLayout,
    PlanStorage,
    Platform,
    ShapeBucket,
    StepInputs,
    StepOutputs,
)
from chiplet.layers.attention import AttentionInputs
from chiplet.models.base import CausalLM
from chiplet.runner.batch_builder import BatchBuilder
from chiplet.runner.reachable import reachable_tensors
from chiplet.runner.sampler import Sampler

_layout = lru_cache(maxsize=256)(InputLayout.of)


class StepFunction:
    """Embedding, layers, penalties, the draw and the note of what was drawn, for any bucket."""

    def __init__(
        self,
        model: CausalLM,
        sampler: Sampler,
        *,
        layouts: Mapping[str, KvLayout],
        state: DeviceState,
        builder: BatchBuilder,
        platform: Platform,
    ) -> None:
        self.model = model
        self.sampler = sampler
        self.layouts = layouts
        self.state = state
        self.builder = builder
        self.platform = platform
        self.attention: dict[str, AttentionImpl] = {
            layer.request.group: layer.impl for layer in model.attention_layers()
        }

    def exactly(self, shape: ShapeBucket) -> BucketStep:
        """The step in one shape, to be run operation by operation."""
        return BucketStep(self, shape, {})

    def for_bucket(self, bucket: ShapeBucket) -> BucketStep:
        """The step in one shape, to be recorded or compiled."""
        storages = {
            group: impl.plan_storage(bucket, self.layouts[group])
            for group, impl in self.attention.items()
            if isinstance(impl, HostPlanning)
        }
        return BucketStep(self, bucket, storages)

    def groups_planned_on_host(self) -> list[str]:
        """Attention groups whose plans are no tensor operations."""
        return [g for g, impl in self.attention.items() if isinstance(impl, HostPlanning)]

    def constants(self) -> Sequence[Tensor]:
        """Every tensor that the function reads beside inputs and state."""
        return reachable_tensors([self.model, self.sampler, self.attention])


class BucketStep:
    """A `chiplet.api.Step`.

    Attributes:
        bucket: its shape.
        layout: of its inputs.
        storages: by attention group, plans that are made on the host before each launch.
    """

    def __init__(
        self, function: StepFunction, bucket: ShapeBucket, storages: dict[str, PlanStorage]
    ) -> None:
        self.bucket = bucket
        self.layout = _layout(bucket)
        self.storages = storages
        self._function = function

    @property
    def state(self) -> DeviceState:
        """The state's tensors."""
        return self._function.state

    def __call__(self, inputs: StepInputs[Tensor], state: DeviceState) -> StepOutputs:
        """Run the step; see `chiplet.api.Step`."""
        return self._run(inputs, state, None)

    def launch(self, host: HostInputs) -> StepOutputs:
        """Run the step operation by operation; see `chiplet.api.Executable`."""
        buffer = self._function.platform.to_device_async(torch.from_numpy(host.buffer))
        arrays = host.arrays
        lengths = HostLengths(np.diff(arrays.query_starts), arrays.kv_lengths)
        return self._run(self.layout.split(buffer, torch.float32), self.state, lengths)

    def constants(self) -> Sequence[Tensor]:
        """Every tensor that the function reads beside inputs and state."""
        return self._function.constants()

    def padding(self) -> HostInputs:
        """Inputs of a step that is padding altogether."""
        return self._function.builder.padding(self.bucket)

    def _run(
        self, inputs: StepInputs[Tensor], state: DeviceState, lengths: HostLengths | None
    ) -> StepOutputs:
        function = self._function
        batch = ForwardBatch(
            num_decodes=self.bucket.num_decodes,
            token_ids=function.sampler.feed(inputs.token_ids, state),
            positions=inputs.positions,
            kv_rows=inputs.kv_rows,
            query_starts=inputs.query_starts,
            kv_lengths=inputs.kv_lengths,
            page_table=inputs.page_table,
            logit_rows=inputs.logit_rows,
            lengths_host=lengths,
        )
        attention = AttentionInputs(state.kv, self._plans(batch))
        logits = function.model.forward(batch, attention)
        return function.sampler.pick(logits, inputs, state, self.bucket)

    def _plans(self, batch: ForwardBatch) -> dict[str, AttentionPlan]:
        layouts, storages = self._function.layouts, self.storages
        return {
            group: storages[group].plan if group in storages else impl.plan(batch, layouts[group])
            for group, impl in self._function.attention.items()
        }
