"""BatchBuilder: a plan becomes the inputs of one step, in one buffer."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from chiplet.api import SETTINGS, HostInputs, InputLayout, Sampling, ShapeBucket
from chiplet.runner.random_numbers import uniforms
from chiplet.runner.slots import SlotTables
from chiplet.step import Bools, Int32s, StepPlan

_UNIFORM, _BARRED = SETTINGS.index("uniform"), SETTINGS.index("barred")


class BatchBuilder:
    """Builds the inputs of steps, filled up with padding to a bucket."""

    def __init__(self, tables: SlotTables, *, page_size: int, padding_page: int) -> None:
        self._tables = tables
        self._page_size = page_size
        self._padding_page = padding_page
        self._template = lru_cache(maxsize=256)(self._make_template)

    def shape(self, plan: StepPlan) -> ShapeBucket:
        """The exact shape of a step. The tables must have taken the plan's admissions."""
        chunks = plan.chunks
        sampling = Sampling(int(np.bitwise_or.reduce(self._tables.needs[chunks.slots])))
        if self._barred(plan).any():
            sampling |= Sampling.BIAS
        num_prompt_rows = int(np.count_nonzero(plan.prompt_targets >= 0))
        if num_prompt_rows:
            sampling |= Sampling.LOGPROBS
        longest = int((chunks.starts + chunks.lengths).max())
        return ShapeBucket(
            num_tokens=plan.num_tokens,
            num_requests=len(chunks),
            num_decodes=plan.num_decodes,
            max_pages=-(-longest // self._page_size),
            num_prompt_rows=num_prompt_rows,
            sampling=sampling,
        )

    def build(self, plan: StepPlan, bucket: ShapeBucket) -> HostInputs:
        """The inputs of a step that the bucket serves.

        The tables must have taken the plan's admissions and page updates already.
        """
        inputs = self.padding(bucket)
        if plan.num_decodes == len(plan.chunks):
            self._put_decodes(plan, inputs, bucket)
        else:
            self._put_tokens(plan, inputs)
        self._put_sampling(plan, inputs, bucket.sampling)
        return inputs

    def padding(self, bucket: ShapeBucket) -> HostInputs:
        """Inputs of a step that is padding altogether."""
        layout, template = self._template(bucket)
        buffer = template.copy()
        return HostInputs(buffer, layout.split(buffer, np.float32))

    def _make_template(self, bucket: ShapeBucket) -> tuple[InputLayout, Int32s]:
        layout = InputLayout.of(bucket)
        buffer = np.zeros(layout.size, dtype=np.int32)
        inputs, decodes = layout.split(buffer, np.float32), slice(0, bucket.num_decodes)
        inputs.kv_rows[:] = self._padding_page * self._page_size
        inputs.query_starts[:] = np.minimum(np.arange(bucket.num_requests + 1), bucket.num_decodes)
        inputs.kv_lengths[decodes] = 1
        inputs.page_table[decodes, 0] = self._padding_page
        if bucket.is_decode:
            inputs.logit_rows[: bucket.num_requests] = np.arange(bucket.num_requests)
        inputs.slots[:] = self._tables.padding_slot
        for name in ("temperature", "top_p", "repetition"):
            inputs.settings[SETTINGS.index(name)] = 0.0 if name == "temperature" else 1.0
        return layout, buffer

    def _put_decodes(self, plan: StepPlan, inputs: HostInputs, bucket: ShapeBucket) -> None:
        """A step in which every request has one token."""
        chunks, arrays, num = plan.chunks, inputs.arrays, len(plan.chunks)
        columns = arrays.page_table.shape[1]
        pages = self._tables.page_table[chunks.slots, :columns]
        arrays.token_ids[:num] = plan.token_ids
        if chunks.is_fed.any():
            np.copyto(arrays.token_ids[:num], -1 - chunks.slots, where=chunks.is_fed)
        arrays.positions[:num] = chunks.starts
        arrays.kv_lengths[:num] = chunks.starts + 1
        arrays.page_table[:num] = pages
        page_index, offsets = np.divmod(chunks.starts, self._page_size)
        arrays.kv_rows[:num] = pages[np.arange(num), page_index] * self._page_size + offsets
        if not bucket.is_decode:
            arrays.query_starts[: num + 1] = np.arange(num + 1)
            arrays.query_starts[num + 1 :] = num
            arrays.logit_rows[:num] = np.arange(num)

    def _put_tokens(self, plan: StepPlan, inputs: HostInputs) -> None:
        """A step with chunks of any length."""
        chunks, arrays = plan.chunks, inputs.arrays
        num, num_tokens = len(chunks), plan.num_tokens
        starts = np.zeros(num + 1, dtype=np.int32)
        np.cumsum(chunks.lengths, out=starts[1:])
        pages = self._tables.page_table[chunks.slots, : arrays.page_table.shape[1]]
        # Row of each token's chunk, and position of each token: start + place in its chunk.
        rows = np.repeat(np.arange(num), chunks.lengths)
        positions = chunks.starts[rows] + np.arange(num_tokens, dtype=np.int32) - starts[rows]
        page_index, offsets = np.divmod(positions, self._page_size)
        arrays.token_ids[:num_tokens] = plan.token_ids
        fed = np.flatnonzero(chunks.is_fed)
        arrays.token_ids[starts[fed]] = -1 - chunks.slots[fed]
        arrays.positions[:num_tokens] = positions
        arrays.kv_rows[:num_tokens] = pages[rows, page_index] * self._page_size + offsets
        arrays.query_starts[: num + 1] = starts
        arrays.query_starts[num + 1 :] = num_tokens
        arrays.kv_lengths[:num] = chunks.starts + chunks.lengths
        arrays.page_table[:num] = pages
        arrays.logit_rows[:num] = starts[1:] - 1
        if len(plan.prompt_targets):
            prompt_rows = np.flatnonzero(plan.prompt_targets >= 0)
            first = len(arrays.slots)
            arrays.logit_rows[first : first + len(prompt_rows)] = prompt_rows
            arrays.targets[: len(prompt_rows)] = plan.prompt_targets[prompt_rows]

    def _put_sampling(self, plan: StepPlan, inputs: HostInputs, sampling: Sampling) -> None:
        tables, chunks, arrays = self._tables, plan.chunks, inputs.arrays
        num, slots = len(chunks), chunks.slots
        arrays.slots[:num] = np.where(chunks.is_sampled, slots, tables.padding_slot)
        if not sampling & ~Sampling.LOGPROBS:
            return
        arrays.top_k[:num] = tables.top_k[slots]
        arrays.settings[:, :num] = tables.settings[:, slots]
        if Sampling.DRAW in sampling:
            arrays.settings[_UNIFORM, :num] = uniforms(tables.seeds[slots], chunks.output_indices)
        if Sampling.BIAS in sampling:
            arrays.settings[_BARRED, :num] = self._barred(plan)

    def _barred(self, plan: StepPlan) -> Bools:
        """Chunks whose answer is too short to end, `[num_chunks] bool`."""
        chunks = plan.chunks
        return chunks.is_sampled & (chunks.output_indices < self._tables.min_tokens[chunks.slots])
