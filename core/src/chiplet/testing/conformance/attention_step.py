"""A step that is one layer's attention and nothing else, to be padded, recorded and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiplet.api import (
    AttentionImpl,
    AttentionRequest,
    BuildContext,
    DeviceState,
    ForwardBatch,
    HostInputs,
    HostPlanning,
    InputLayout,
    KvLayout,
    Logprobs,
    PlanStorage,
    ShapeBucket,
    StepInputs,
    StepOutputs,
)
from chiplet.runner.reachable import reachable_tensors
from chiplet.testing.conformance.attention_inputs import Inputs, host_lengths
from chiplet.testing.conformance.guards import GuardedBuffer
from chiplet.testing.conformance.tolerance import TORCH_DTYPES

_NUM_SLOTS = 2


@dataclass(frozen=True, slots=True)
class TokenTables:
    """Queries, keys and values of every token of a sequence of steps, found by token id.

    Row 0 is NaN: it is that of padding, whose hidden states may be anything.

    Attributes:
        q: `[num_ids, num_heads, head_dim]`.
        k, v: `[num_ids, num_kv_heads, head_dim]`.
        tree_bits: `[num_ids, 2] int32`, see `ForwardBatch`; 0 for padding. None if no step has any.
        first_ids: of each step.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    tree_bits: Tensor | None
    first_ids: tuple[int, ...]

    @classmethod
    def of(cls, steps: Sequence[Inputs], device: torch.device) -> TokenTables:
        """The tokens of all steps, one after another."""
        ends = np.cumsum([1, *(len(each.q) for each in steps)]).tolist()

        def table(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat([torch.full_like(parts[0][:1], torch.nan), *parts]).to(device)

        q, k, v = ([getattr(each, name) for each in steps] for name in ("q", "k", "v"))
        return cls(table(q), table(k), table(v), _tree_table(steps, device), tuple(ends[:-1]))


def _tree_table(steps: Sequence[Inputs], device: torch.device) -> Tensor | None:
    bits = [each.batch.tree_bits for each in steps]
    if all(each is None for each in bits):
        return None
    rows = [torch.zeros(1, 2, dtype=torch.int32)]
    for each, step in zip(bits, steps, strict=True):
        rows.append(torch.zeros(len(step.q), 2, dtype=torch.int32) if each is None else each)
    return torch.cat(rows).to(device)


class AttentionStep:
    """A `chiplet.api.Step` of one layer's attention. Its output stands in `logprobs.top`.

    Attributes:
        bucket: its shape.
        layout: of its inputs.
        state: one layer's pages; the other tables are as small as can be.
        storage: plans that are made on the host before each launch, if they are.
        padding_page: the last page.
    """

    def __init__(
        self,
        impl: AttentionImpl,
        request: AttentionRequest,
        bucket: ShapeBucket,
        *,
        kv_layout: KvLayout,
        num_pages: int,
        tables: TokenTables,
        context: BuildContext,
    ) -> None:
        device = context.torch_device
        self.bucket = bucket
        self.layout = InputLayout.of(bucket)
        self.padding_page = num_pages
        self.storage: PlanStorage | None = None
        if isinstance(impl, HostPlanning):
            self.storage = impl.plan_storage(bucket, kv_layout)
        self._impl, self._spec, self._kv_layout = impl, request.kv, kv_layout
        self._tables, self._context = tables, context
        shape = kv_layout.shape(request.kv, num_pages + 1)
        self._kv = GuardedBuffer(shape, TORCH_DTYPES[request.kv.dtype], device)
        self._page_ids = torch.arange(num_pages, device=device)
        flags = torch.zeros(_NUM_SLOTS, 1, dtype=torch.bool, device=device)
        self.state = DeviceState(
            kv=(self._kv.tensor,),
            last_tokens=torch.zeros(_NUM_SLOTS, dtype=torch.int32, device=device),
            is_in_prompt=flags,
            output_counts=torch.zeros(_NUM_SLOTS, 1, dtype=torch.int32, device=device),
            bias=torch.zeros(_NUM_SLOTS, 1, device=device),
            is_end=flags.clone(),
        )

    def __call__(self, inputs: StepInputs[Tensor], state: DeviceState) -> StepOutputs:
        """Attend; see `chiplet.api.Step`."""
        ids, tables = inputs.token_ids.long(), self._tables
        batch = ForwardBatch(
            num_decodes=self.bucket.num_decodes,
            token_ids=inputs.token_ids,
            positions=inputs.positions,
            kv_rows=inputs.kv_rows,
            query_starts=inputs.query_starts,
            kv_lengths=inputs.kv_lengths,
            page_table=inputs.page_table,
            logit_rows=inputs.logit_rows,
            lengths_host=None,
            tree_bits=None if tables.tree_bits is None else tables.tree_bits[ids],
        )
        plan = self.storage.plan if self.storage else self._impl.plan(batch, self._kv_layout)
        out = self._impl.run(tables.q[ids], tables.k[ids], tables.v[ids], state.kv[0], plan)
        rows = out.flatten(1).float()
        ids_of_rows = inputs.token_ids.unsqueeze(1).clone()
        return StepOutputs(inputs.kv_lengths.clone(), Logprobs(rows[:, 0], ids_of_rows, rows))

    def launch(self, host: HostInputs) -> StepOutputs:
        """Attend operation by operation, in the bucket's shape."""
        buffer = self._context.platform.to_device_async(torch.from_numpy(host.buffer))
        return self(self.layout.split(buffer, torch.float32), self.state)

    def constants(self) -> Sequence[Tensor]:
        """Every tensor that the function reads beside inputs and state."""
        return reachable_tensors([self._tables, self._impl])

    def padding(self) -> HostInputs:
        """Inputs of a step that is padding altogether."""
        bucket, buffer = self.bucket, np.zeros(self.layout.size, dtype=np.int32)
        arrays = self.layout.split(buffer, np.float32)
        decodes = slice(0, bucket.num_decodes)
        arrays.kv_rows[:] = self.padding_page * self._spec.page_size
        arrays.query_starts[:] = np.minimum(np.arange(bucket.num_requests + 1), bucket.num_decodes)
        arrays.kv_lengths[decodes] = 1
        arrays.page_table[decodes, 0] = self.padding_page
        if bucket.is_decode:
            arrays.logit_rows[:] = np.arange(bucket.num_requests)
        arrays.slots[:] = _NUM_SLOTS - 1
        return HostInputs(buffer, arrays)

    def inputs(self, batch: ForwardBatch, first_id: int) -> HostInputs:
        """Inputs of a batch that the bucket serves, and padding behind it.

        Past a request's pages the table names a page in which nobody wrote.
        """
        host = self.padding()
        arrays: StepInputs[Any] = host.arrays
        tokens, requests = batch.num_tokens, batch.num_requests
        arrays.token_ids[:tokens] = first_id + np.arange(tokens)
        arrays.positions[:tokens] = batch.positions.numpy()
        arrays.kv_rows[:tokens] = batch.kv_rows.numpy()
        arrays.query_starts[: requests + 1] = batch.query_starts.numpy()
        if not self.bucket.is_decode:
            arrays.query_starts[requests + 1 :] = tokens
        arrays.kv_lengths[:requests] = batch.kv_lengths.numpy()
        arrays.page_table[:requests] = self.padding_page - 1
        counts = -(-host_lengths(batch).kv // self._spec.page_size)
        for row, count in enumerate(counts.tolist()):
            arrays.page_table[row, :count] = batch.page_table[row, :count].numpy()
        arrays.logit_rows[:requests] = batch.logit_rows.numpy()
        arrays.slots[:requests] = 0
        return host

    def load(self, canonical: Tensor) -> None:
        """Put pages into the cache, NaN into all others. Mutates: the state's pages."""
        kv, device = self._kv.tensor, self._context.torch_device
        whole = torch.full((len(self._page_ids), *canonical.shape[1:]), torch.nan)
        whole = whole.to(canonical.dtype)
        whole[: len(canonical)] = canonical
        self._kv_layout.from_canonical(whole.to(device), kv, self._page_ids, self._spec)

    def cache(self) -> Tensor:
        """All pages but that of padding in the canonical layout, in main memory."""
        return self._kv_layout.to_canonical(self._kv.tensor, self._page_ids, self._spec).cpu()

    def check_guards(self, what: str) -> None:
        """Look whether anything was written around the pages."""
        self._kv.check(f"{what}: cache")
