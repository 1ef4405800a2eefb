"""Sampler: logits become tokens, on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chiplet.api import Dtype, Op, OpRequest
from chiplet.layers.bindings import Bindings
from chiplet.runner.batch_builder import SamplingBatch
from chiplet.runner.slots import SlotTables

_PROMPT_ROWS = 64
"""Prompt positions whose log-probabilities are computed together."""

DeviceLogprobs = tuple[Tensor, Tensor, Tensor]
"""Chosen `[n] float32`, top ids `[n, k] int32`, top `[n, k] float32`, device."""


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What sampling gave, on the device.

    Attributes:
        token_ids: `[num_sampled] int32`.
        logprobs: of them, if any request wants some.
        prompt_logprobs: of the prompt rows, if any.
    """

    token_ids: Tensor
    logprobs: DeviceLogprobs | None
    prompt_logprobs: DeviceLogprobs | None


class Sampler:
    """Penalties, bias, filters and the draw, in this order, through bound operations."""

    def __init__(self, bindings: Bindings, tables: SlotTables) -> None:
        def op(name: Op):
            return bindings.op(OpRequest(op=name, dtype=Dtype.FLOAT32))

        self._penalize = op(Op.PENALIZE)
        self._sample = op(Op.SAMPLE)
        self._top_logprobs = op(Op.TOP_LOGPROBS)
        self._tables = tables

    def pick(self, logits: Tensor, batch: SamplingBatch) -> SampledTokens:
        """Tokens of a step, noted in the slot tables too.

        Shapes: logits `[num_logit_rows, vocab]`, the model's type: sampled rows, then prompt
        rows; anything after them is padding.
        """
        num_sampled, num_prompt_rows = batch.slots.shape[0], batch.prompt_targets.shape[0]
        sampled_logits = logits[:num_sampled].float()
        token_ids = self._draw(sampled_logits, batch)
        self._tables.remember(batch.slots, token_ids)
        if batch.has_penalties:
            self._tables.count(batch.slots, token_ids.long())
        logprobs = prompt_logprobs = None
        if batch.top_count is not None and num_sampled:
            logprobs = self._top_logprobs(sampled_logits, token_ids, batch.top_count)
        if batch.prompt_top_count is not None and num_prompt_rows:
            prompt_logits = logits[num_sampled : num_sampled + num_prompt_rows]
            prompt_logprobs = self._prompt_logprobs(
                prompt_logits, batch.prompt_targets, batch.prompt_top_count
            )
        return SampledTokens(token_ids, logprobs, prompt_logprobs)

    def _prompt_logprobs(self, logits: Tensor, targets: Tensor, k: int) -> DeviceLogprobs:
        """Some rows at a time: a whole chunk of prompt in float32 may not fit."""
        pieces = [
            self._top_logprobs(rows.float(), chosen, k)
            for rows, chosen in zip(
                logits.split(_PROMPT_ROWS), targets.split(_PROMPT_ROWS), strict=True
            )
        ]
        chosen, top_ids, top = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return chosen, top_ids, top

    def _draw(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        if batch.has_penalties:
            is_in_prompt, output_counts = self._tables.occurrences(batch.slots)
            logits = self._penalize(
                logits,
                is_in_prompt,
                output_counts,
                batch.repetition,
                batch.presence,
                batch.frequency,
            )
        rows, tokens, values = batch.adjusted
        if rows.shape[0]:
            logits = logits.index_put((rows, tokens), values, accumulate=True)
        if batch.is_greedy:
            return logits.argmax(dim=-1).int()
        return self._sample(
            logits,
            batch.temperature,
            batch.top_k,
            batch.top_p,
            batch.min_p,
            batch.uniform,
            batch.has_filters,
        )
