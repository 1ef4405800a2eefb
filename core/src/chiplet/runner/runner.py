"""ModelRunner: launches plans on one device."""

from __future__ import annotations

import torch

from chiplet.api import AttentionImpl, AttentionPlan, Event, ForwardBatch, Platform
from chiplet.errors import EngineError
from chiplet.layers.attention import AttentionInputs
from chiplet.models.base import CausalLM
from chiplet.runner.batch_builder import BatchBuilder
from chiplet.runner.kv_pool import KvPool
from chiplet.runner.sampler import DeviceLogprobs, SampledTokens, Sampler
from chiplet.runner.slots import SlotTables
from chiplet.step import LogprobRows, StepPlan, StepResult


class ModelRunner:
    """Runs a model's steps in the order of their plans; see `chiplet.step.Runner`."""

    def __init__(
        self,
        model: CausalLM,
        kv: KvPool,
        *,
        platform: Platform,
        tables: SlotTables,
        builder: BatchBuilder,
        sampler: Sampler,
    ) -> None:
        self._model = model
        self._kv = kv
        self._platform = platform
        self._tables = tables
        self._builder = builder
        self._sampler = sampler
        self._attention: dict[str, AttentionImpl] = {
            layer.request.group: layer.impl for layer in model.attention_layers()
        }

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Start one step and return without waiting for the device."""
        self._tables.admit(plan.admissions)
        self._tables.update_pages(plan.page_updates)
        batch, sampling = self._builder.build(plan)
        attention = AttentionInputs(self._kv.layers, self._plan_attention(batch))
        logits = self._model.forward(batch, attention)
        sampled = self._sampler.pick(logits, sampling)
        return LaunchedStep(plan.step_id, sampled, self._platform)

    def _plan_attention(self, batch: ForwardBatch) -> dict[str, AttentionPlan]:
        return {
            group: impl.plan(batch, self._kv.layouts[group])
            for group, impl in self._attention.items()
        }


class LaunchedStep:
    """A step whose tokens are on their way to the host; see `chiplet.step.PendingStep`."""

    def __init__(self, step_id: int, sampled: SampledTokens, platform: Platform) -> None:
        self._step_id = step_id
        self._token_ids = platform.to_host_async(sampled.token_ids)
        self._logprobs = _to_host(sampled.logprobs, platform)
        self._prompt_logprobs = _to_host(sampled.prompt_logprobs, platform)
        self._event: Event = platform.record_event()

    def is_done(self) -> bool:
        """Whether the tokens have arrived."""
        return self._event.is_done()

    def wait(self) -> StepResult:
        """The step's result; blocks until the tokens have arrived."""
        try:
            self._event.wait()
        except RuntimeError as error:
            raise EngineError(f"The device failed in step {self._step_id}: {error}") from error
        return StepResult(
            step_id=self._step_id,
            token_ids=self._token_ids.numpy(),
            logprobs=_rows(self._logprobs),
            prompt_logprobs=_rows(self._prompt_logprobs),
        )


def _to_host(logprobs: DeviceLogprobs | None, platform: Platform) -> DeviceLogprobs | None:
    if logprobs is None:
        return None
    chosen, top_ids, top = (platform.to_host_async(tensor) for tensor in logprobs)
    return chosen, top_ids, top


def _rows(logprobs: DeviceLogprobs | None) -> LogprobRows | None:
    if logprobs is None:
        return None
    chosen, top_ids, top = logprobs
    return LogprobRows(chosen.numpy(), top_ids.numpy(), top.numpy())
