"""BatchBuilder: a plan becomes the tensors of one forward pass and of the sampling after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from chiplet.api import Platform
from chiplet.forward_batch import ForwardBatch
from chiplet.runner.packing import HostPacker
from chiplet.runner.random_numbers import uniforms
from chiplet.runner.slots import SlotTables
from chiplet.step import Int32s, StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBatch:
    """All that picking tokens needs, one row per sampled chunk; on the device unless `_host`.

    Attributes:
        slots: `[num_sampled] int64`.
        temperature, top_p, min_p, uniform: `[num_sampled] float32`.
        top_k: `[num_sampled] int32`.
        repetition, presence, frequency: `[num_sampled] float32`.
        adjusted: rows `[m] int64`, tokens `[m] int64` and what is added to their logits
            `[m] float32`: logit bias, and minus infinity for end tokens that come too early.
        prompt_targets: `[num_prompt_rows] int32`, tokens whose prompt log-probability is wanted;
            their rows follow the sampled ones in the logits.
        top_count: alternatives per token that any request wants; None if none wants logprobs.
        prompt_top_count: likewise for prompt tokens.
    """

    slots: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    adjusted: tuple[Tensor, Tensor, Tensor]
    prompt_targets: Tensor
    is_greedy: bool
    has_filters: bool
    has_penalties: bool
    top_count: int | None
    prompt_top_count: int | None


class BatchBuilder:
    """Builds both batches of a step with one copy to the device."""

    def __init__(self, tables: SlotTables, *, page_size: int, platform: Platform) -> None:
        self._tables = tables
        self._page_size = page_size
        self._platform = platform

    def build(self, plan: StepPlan) -> tuple[ForwardBatch, SamplingBatch]:
        """The tensors of one step.

        The tables must have taken the plan's admissions and page updates already.
        """
        packer = HostPacker()
        self._pack_forward(plan, packer)
        sampled = np.flatnonzero(plan.chunks.is_sampled).astype(np.int32)
        self._pack_sampling(plan, sampled, packer)
        tensors = packer.send(self._platform)
        return self._forward(plan, tensors), self._sampling(plan, sampled, tensors)

    def _pack_forward(self, plan: StepPlan, packer: HostPacker) -> None:
        chunks = plan.chunks
        starts = np.zeros(len(chunks) + 1, dtype=np.int32)
        np.cumsum(chunks.lengths, out=starts[1:])
        kv_lengths = chunks.starts + chunks.lengths
        pages = self._tables.page_table[
            chunks.slots, : -(-int(kv_lengths.max()) // self._page_size)
        ]
        # Row of each token's chunk, and position of each token: start + place in its chunk.
        rows = np.repeat(np.arange(len(chunks)), chunks.lengths)
        places = np.arange(plan.num_tokens, dtype=np.int32) - starts[rows]
        positions = chunks.starts[rows] + places
        page_ids = pages[rows, positions // self._page_size].astype(np.int64)
        prompt_rows = np.flatnonzero(plan.prompt_targets >= 0)
        packer.put("token_ids", plan.token_ids)
        packer.put("positions", positions)
        packer.put("kv_rows", page_ids * self._page_size + positions % self._page_size)
        packer.put("query_starts", starts)
        packer.put("kv_lengths", kv_lengths)
        packer.put("page_table", _without_stale(pages, kv_lengths, self._page_size))
        logit_rows = np.concatenate([starts[1:][chunks.is_sampled] - 1, prompt_rows])
        # A step that samples nothing still gets one row: products of no rows are a trap.
        packer.put("logit_rows", logit_rows if len(logit_rows) else np.zeros(1, dtype=np.int64))
        packer.put("prompt_targets", plan.prompt_targets[prompt_rows])
        fed = np.flatnonzero(chunks.is_fed)
        packer.put("fed_tokens", starts[fed].astype(np.int64))
        packer.put("fed_slots", chunks.slots[fed].astype(np.int64))

    def _forward(self, plan: StepPlan, tensors: dict[str, Tensor]) -> ForwardBatch:
        token_ids = tensors["token_ids"]
        if plan.chunks.is_fed.any():
            last = self._tables.last_tokens[tensors["fed_slots"]]
            token_ids = token_ids.index_copy(0, tensors["fed_tokens"], last)
        return ForwardBatch(
            num_decodes=plan.num_decodes,
            token_ids=token_ids,
            positions=tensors["positions"],
            kv_rows=tensors["kv_rows"],
            query_starts=tensors["query_starts"],
            kv_lengths=tensors["kv_lengths"],
            page_table=tensors["page_table"],
            logit_rows=tensors["logit_rows"].long(),
            query_lengths_host=plan.chunks.lengths,
            kv_lengths_host=plan.chunks.starts + plan.chunks.lengths,
        )

    def _pack_sampling(self, plan: StepPlan, sampled: Int32s, packer: HostPacker) -> None:
        tables, slots = self._tables, plan.chunks.slots[sampled]
        output_indices = plan.chunks.output_indices[sampled]
        packer.put("slots", slots.astype(np.int64))
        for name in ("temperature", "top_k", "top_p", "min_p"):
            packer.put(name, getattr(tables, name)[slots])
        for name in ("repetition", "presence", "frequency"):
            packer.put(name, getattr(tables, name)[slots])
        packer.put("uniform", uniforms(tables.seeds[slots], output_indices))
        rows, tokens, values = _adjustments(tables, slots, output_indices)
        packer.put("adjusted_rows", np.asarray(rows, dtype=np.int64))
        packer.put("adjusted_tokens", np.asarray(tokens, dtype=np.int64))
        packer.put("adjusted_values", np.asarray(values, dtype=np.float32))

    def _sampling(
        self, plan: StepPlan, sampled: Int32s, tensors: dict[str, Tensor]
    ) -> SamplingBatch:
        tables, slots = self._tables, plan.chunks.slots[sampled]
        drawn = slots[tables.temperature[slots] > 0]
        wanted = [tables.sampling[slot].logprobs for slot in slots]
        prompt_wanted = (
            [tables.sampling[slot].prompt_logprobs for slot in plan.chunks.slots]
            if len(plan.prompt_targets)
            else []
        )
        names = ("temperature", "top_k", "top_p", "min_p", "uniform")
        penalties = ("repetition", "presence", "frequency")
        return SamplingBatch(
            slots=tensors["slots"],
            **{name: tensors[name] for name in names + penalties},
            adjusted=(
                tensors["adjusted_rows"],
                tensors["adjusted_tokens"],
                tensors["adjusted_values"],
            ),
            prompt_targets=tensors["prompt_targets"],
            is_greedy=not len(drawn),
            has_filters=bool(
                tables.top_k[drawn].any()
                or (tables.top_p[drawn] < 1).any()
                or tables.min_p[drawn].any()
            ),
            has_penalties=any(tables.sampling[slot].has_penalties for slot in slots),
            top_count=_largest(wanted),
            prompt_top_count=_largest(prompt_wanted),
        )


def _without_stale(pages: Int32s, kv_lengths: Int32s, page_size: int) -> Int32s:
    """Rows of the page table with entries past each request's last page set to 0."""
    is_used = np.arange(pages.shape[1]) < -(-kv_lengths // page_size)[:, None]
    return np.where(is_used, pages, 0).astype(np.int32)


def _adjustments(
    tables: SlotTables, slots: Int32s, output_indices: Int32s
) -> tuple[list[int], list[int], list[float]]:
    """Rows, tokens and values of what is added to single logits."""
    rows: list[int] = []
    tokens: list[int] = []
    values: list[float] = []
    for row, slot in enumerate(slots):
        sampling = tables.sampling[slot]
        added = dict(sampling.logit_bias)
        if output_indices[row] < sampling.min_tokens:
            added |= dict.fromkeys(tables.end_token_ids[slot], -np.inf)
        rows += [row] * len(added)
        tokens += added.keys()
        values += added.values()
    return rows, tokens, values


def _largest(counts: list[int | None]) -> int | None:
    return max((count for count in counts if count is not None), default=None)
