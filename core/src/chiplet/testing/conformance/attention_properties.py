"""Properties of attention that hold for any batch; hypothesis looks for a batch where one fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiplet.api import AttentionProvider, AttentionRequest, BuildContext, HostLengths
from chiplet.testing.conformance.attention import (
    GuardedKv,
    assert_same_cache,
    run_reference,
)
from chiplet.testing.conformance.attention_inputs import (
    AttentionCase,
    Inputs,
    PlacedTensors,
    host_lengths,
    make_inputs,
    on_device,
)
from chiplet.testing.conformance.case import Skipped
from chiplet.testing.conformance.guards import Placement
from chiplet.testing.conformance.tolerance import assert_close

Property = Callable[[AttentionProvider, AttentionRequest, BuildContext], None]
"""Raises AssertionError with the smallest batch that breaks it, or Skipped."""

_EXAMPLES = 12
_MOST_TOKENS = 70


class _Bench:
    """Runs one implementation on inputs and says how far it may be from the exact result."""

    def __init__(
        self, provider: AttentionProvider, request: AttentionRequest, context: BuildContext
    ) -> None:
        self._request = request
        self._device = context.torch_device
        self._impl = provider.build(request, context)
        self._layout = self._impl.layouts()[0]

    def run(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output and cache, in main memory."""
        placed = PlacedTensors(inputs, Placement.STACKED, self._device)
        kv = GuardedKv(self._layout, self._request.kv, inputs.canonical, self._device)
        page_size = self._request.kv.page_size
        batch = on_device(inputs.batch, self._device, first_page=0, page_size=page_size)
        plan = self._impl.plan(batch, self._layout)
        out = self._impl.run(placed.q, placed.k, placed.v, kv.tensor, plan)
        return out.cpu(), kv.canonical()

    def check(self, out: Tensor, inputs: Inputs, what: str) -> None:
        """Compare an output with the exact one for inputs.

        Raises:
            AssertionError: it is too far.
        """
        plain, _ = run_reference(self._request, inputs)
        exact, _ = run_reference(self._request, inputs.widened())
        assert_close(out, plain, exact, what)


def _page_permutation(bench: _Bench, inputs: Inputs, page_size: int, seed: int) -> None:
    num_pages = inputs.canonical.shape[0]
    new_ids = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed))
    canonical = torch.empty_like(inputs.canonical)
    canonical[new_ids] = inputs.canonical
    batch = inputs.batch
    counts = torch.from_numpy(-(-host_lengths(batch).kv // page_size))
    is_used = torch.arange(batch.page_table.shape[1]) < counts[:, None]
    table = torch.where(is_used, new_ids[batch.page_table.long()].int(), 0)
    rows = new_ids[batch.kv_rows.long() // page_size] * page_size + batch.kv_rows % page_size
    moved = replace(batch, page_table=table, kv_rows=rows.to(batch.kv_rows.dtype))
    out, cache = bench.run(replace(inputs, batch=moved, canonical=canonical))
    bench.check(out, inputs, "pages in another order")
    _, expected = bench.run(inputs)
    assert_same_cache(cache[new_ids], expected, "pages in another order")


def _batch_permutation(bench: _Bench, inputs: Inputs, page_size: int, seed: int) -> None:
    batch, rng = inputs.batch, np.random.default_rng(seed)
    decodes = rng.permutation(batch.num_decodes)
    others = batch.num_decodes + rng.permutation(batch.num_requests - batch.num_decodes)
    order = np.concatenate([decodes, others]).astype(np.int64)
    moved, tokens = _taken(inputs, order)
    out, _ = bench.run(moved)
    back = torch.empty_like(out)
    back[tokens] = out
    bench.check(back, inputs, f"requests in order {order.tolist()}")


def _alone(bench: _Bench, inputs: Inputs, page_size: int, seed: int) -> None:
    for index in range(inputs.batch.num_requests):
        alone, tokens = _taken(inputs, np.array([index]))
        out, _ = bench.run(alone)
        bench.check(out, alone, f"request {index} alone")
        assert len(tokens) == len(out)


def _chunked(bench: _Bench, inputs: Inputs, page_size: int, seed: int) -> None:
    """The first request's tokens in two chunks, the second of which finds the first's pages."""
    whole, _ = _taken(inputs, np.array([inputs.batch.num_requests - 1]))
    num_tokens = whole.batch.num_tokens
    if num_tokens < 2:
        return
    cut = 1 + seed % (num_tokens - 1)
    first, second = _cut(whole, 0, cut), _cut(whole, cut, num_tokens)
    head, cache = bench.run(first)
    tail, _ = bench.run(replace(second, canonical=cache))
    bench.check(torch.cat([head, tail]), whole, f"chunks of {cut} and {num_tokens - cut} tokens")


def _shared_prefix(bench: _Bench, inputs: Inputs, page_size: int, seed: int) -> None:
    """Requests that share pages see what they would see in copies of these pages."""
    batch = inputs.batch
    canonical, table, rows = [inputs.canonical], batch.page_table.clone(), batch.kv_rows.clone()
    next_page, start, lengths = inputs.canonical.shape[0], 0, host_lengths(batch)
    for index, (queries, length) in enumerate(
        zip(lengths.queries.tolist(), lengths.kv.tolist(), strict=True)
    ):
        count = -(-length // page_size)
        canonical.append(inputs.canonical[table[index, :count].long()])
        table[index, :count] = torch.arange(next_page, next_page + count)
        at = torch.arange(length - queries, length)
        rows[start : start + queries] = table[index].long()[at // page_size] * page_size + (
            at % page_size
        )
        next_page, start = next_page + count, start + queries
    flat = replace(
        inputs,
        batch=replace(batch, page_table=table, kv_rows=rows),
        canonical=torch.cat(canonical),
    )
    out, _ = bench.run(inputs)
    bench.check(out, flat, "pages of its own for each request")


def _taken(inputs: Inputs, order: np.ndarray) -> tuple[Inputs, Tensor]:
    """Some requests in another order, and their tokens in the original."""
    batch = inputs.batch
    starts: list[int] = batch.query_starts.tolist()
    tokens = torch.cat([torch.arange(starts[each], starts[each + 1]) for each in order.tolist()])
    host = host_lengths(batch)
    queries, lengths = host.queries[order], host.kv[order]
    new_starts = torch.from_numpy(np.concatenate([[0], np.cumsum(queries)]).astype(np.int32))
    index = torch.from_numpy(order)
    taken = replace(
        batch,
        num_decodes=int((queries == 1).sum()),
        token_ids=batch.token_ids[tokens],
        positions=batch.positions[tokens],
        kv_rows=batch.kv_rows[tokens],
        query_starts=new_starts,
        kv_lengths=batch.kv_lengths[index],
        page_table=batch.page_table[index],
        logit_rows=new_starts[1:].to(batch.logit_rows.dtype) - 1,
        lengths_host=HostLengths(queries, lengths),
    )
    return replace(
        inputs, batch=taken, q=inputs.q[tokens], k=inputs.k[tokens], v=inputs.v[tokens]
    ), tokens


def _cut(whole: Inputs, start: int, end: int) -> Inputs:
    """Some tokens of the only request."""
    batch, part = whole.batch, slice(start, end)
    length = int(host_lengths(batch).kv[0]) - batch.num_tokens + end
    ends = torch.tensor([0, end - start], dtype=torch.int32)
    cut = replace(
        batch,
        num_decodes=int(end - start == 1),
        token_ids=batch.token_ids[part],
        positions=batch.positions[part],
        kv_rows=batch.kv_rows[part],
        query_starts=ends,
        kv_lengths=torch.tensor([length], dtype=torch.int32),
        logit_rows=ends[1:].to(batch.logit_rows.dtype) - 1,
        lengths_host=HostLengths(np.array([end - start], np.int32), np.array([length], np.int32)),
    )
    return replace(whole, batch=cut, q=whole.q[part], k=whole.k[part], v=whole.v[part])


_Check = Callable[[_Bench, Inputs, int, int], None]


def _property(check: _Check, *, shared: bool = False) -> Property:
    """A check for any batch that hypothesis draws; derandomized, so that a run can be repeated."""

    def holds(
        provider: AttentionProvider, request: AttentionRequest, context: BuildContext
    ) -> None:
        if find_spec("hypothesis") is None:
            raise Skipped("hypothesis is not installed: pip install 'chiplet[testing]'")
        import hypothesis  # noqa: PLC0415 - a tool of tests, optional for users
        from hypothesis import strategies as st  # noqa: PLC0415 - the same

        bench = _Bench(provider, request, context)
        page_size = request.kv.page_size

        @hypothesis.settings(
            max_examples=_EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=[
                hypothesis.HealthCheck.too_slow,
                hypothesis.HealthCheck.large_base_example,
            ],
        )
        @hypothesis.given(st.data())
        def examples(data: Any) -> None:
            case = _drawn(data, page_size, shared=shared)
            check(bench, make_inputs(request, case, 1.0), page_size, case.seed)

        examples()

    return holds


def _drawn(data: Any, page_size: int, *, shared: bool) -> AttentionCase:
    """A batch of one to five requests."""
    from hypothesis import strategies as st  # noqa: PLC0415 - a tool of tests, optional for users

    num_shared = data.draw(st.integers(1, 2)) if shared else 0
    least = num_shared * page_size
    pairs: list[tuple[int, int]] = []
    for _ in range(data.draw(st.integers(1, 5))):
        queries = data.draw(st.integers(1, _MOST_TOKENS))
        cached = least + data.draw(st.integers(0, _MOST_TOKENS))
        pairs.append((1 if data.draw(st.booleans()) else queries, cached))
    pairs.sort(key=lambda pair: pair[0] != 1)
    return AttentionCase(
        "drawn",
        tuple(queries for queries, _ in pairs),
        tuple(queries + cached for queries, cached in pairs),
        num_shared,
        data.draw(st.integers(0, 1000)),
    )


PROPERTIES: Mapping[str, Property] = {
    "page permutation": _property(_page_permutation),
    "batch permutation": _property(_batch_permutation),
    "alone as in a batch": _property(_alone),
    "chunked as whole": _property(_chunked),
    "shared prefix as flat": _property(_shared_prefix, shared=True),
}
"""What must hold for any batch, by the name in the report."""
