"""Sampler: logits become tokens, in tensor operations alone."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import (
    GREEDY,
    DeviceState,
    Dtype,
    Logprobs,
    Op,
    OpRequest,
    Sampling,
    ShapeBucket,
    StepInputs,
    StepOutputs,
)
from chiplet.layers.bindings import Bindings
from chiplet.parallel.group import ONE_RANK, RankGroup
from chiplet.sampling_params import MAX_LOGPROBS

_PROMPT_ROWS = 64
"""Prompt positions whose log-probabilities are computed together."""


class Sampler:
    """Penalties, bias, filters and the draw, in this order, through bound operations."""

    def __init__(self, bindings: Bindings, dtype: Dtype, ranks: RankGroup = ONE_RANK) -> None:
        """Bind the operations.

        Args:
            bindings: gives each operation its implementation.
            dtype: the type of the model's logits.
            ranks: those that pick the same tokens.
        """
        self._ranks = ranks

        def op(name: Op, dtype: Dtype = Dtype.FLOAT32):
            return bindings.op(OpRequest(op=name, dtype=dtype))

        self._feed = op(Op.FEED)
        self._argmax_of_model = op(Op.ARGMAX, dtype)
        self._argmax = op(Op.ARGMAX)
        self._penalize = op(Op.PENALIZE)
        self._sample = op(Op.SAMPLE)
        self._top_logprobs = op(Op.TOP_LOGPROBS)

    def feed(self, token_ids: Tensor, state: DeviceState) -> Tensor:
        """The step's token ids, those from the step before included, `[num_tokens] int32`."""
        return self._feed(token_ids, state.last_tokens)

    def pick(
        self,
        logits: Tensor,
        inputs: StepInputs[Tensor],
        state: DeviceState,
        bucket: ShapeBucket,
    ) -> StepOutputs:
        """Tokens of a step, noted in the state too.

        Shapes: logits `[num_logit_rows, vocab]`, the model's type.
        Mutates: `last_tokens` and `output_counts` of the state.
        """
        rows = logits[: bucket.num_requests]
        if bucket.sampling == GREEDY:
            token_ids = self._argmax_of_model(rows)
        else:
            rows = rows.float()
            token_ids = self._draw(rows, inputs, state, bucket.sampling)
        token_ids = self._ranks.agreed(token_ids)
        state.last_tokens.index_put_((inputs.slots,), token_ids)
        if Sampling.PENALTIES in bucket.sampling:
            ones = torch.ones_like(inputs.slots)
            state.output_counts.index_put_((inputs.slots, token_ids), ones, accumulate=True)
        if Sampling.LOGPROBS not in bucket.sampling:
            return StepOutputs(token_ids, None)
        k = min(MAX_LOGPROBS, logits.shape[1])
        pieces = [self._top_logprobs(rows, token_ids, k)]
        if bucket.num_prompt_rows:
            # Some rows at a time: a whole chunk of prompt in float32 may not fit.
            prompt_logits = logits[bucket.num_requests :].split(_PROMPT_ROWS)
            pieces += [
                self._top_logprobs(part.float(), chosen, k)
                for part, chosen in zip(
                    prompt_logits, inputs.targets.split(_PROMPT_ROWS), strict=True
                )
            ]
        return StepOutputs(token_ids, _joined(pieces))

    def _draw(
        self, logits: Tensor, inputs: StepInputs[Tensor], state: DeviceState, sampling: Sampling
    ) -> Tensor:
        """Shapes: logits `[num_requests, vocab] float32`; returns `[num_requests] int32`."""
        slots = inputs.slots
        temperature, top_p, min_p, repetition, presence, frequency, uniform, barred = (
            inputs.settings.unbind(0)
        )
        if Sampling.PENALTIES in sampling:
            logits = self._penalize(
                logits,
                state.is_in_prompt.index_select(0, slots),
                state.output_counts.index_select(0, slots),
                repetition,
                presence,
                frequency,
            )
        if Sampling.BIAS in sampling:
            is_barred = state.is_end.index_select(0, slots) & (barred > 0).unsqueeze(1)
            logits = (logits + state.bias.index_select(0, slots)).masked_fill(is_barred, -torch.inf)
        if Sampling.DRAW not in sampling:
            return self._argmax(logits)
        has_filters = Sampling.FILTERS in sampling
        return self._sample(logits, temperature, inputs.top_k, top_p, min_p, uniform, has_filters)


def _joined(pieces: list[tuple[Tensor, Tensor, Tensor]]) -> Logprobs:
    if len(pieces) == 1:
        return Logprobs(*pieces[0])
    chosen, top_ids, top = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return Logprobs(chosen, top_ids, top)
