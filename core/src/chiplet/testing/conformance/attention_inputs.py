"""Inputs of attention: a batch by its lengths, scattered pages, and what lies around them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from chiplet.api import AttentionImpl, AttentionRequest, ForwardBatch, HostLengths, SinkAttention
from chiplet.layers.context import cache_dtype
from chiplet.reference.kv_coding import encode
from chiplet.testing.conformance.guards import Placement, place
from chiplet.testing.conformance.tolerance import TORCH_DTYPES


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """A batch by its lengths; requests with one query token come first.

    Attributes:
        query_lengths: query tokens of each request.
        kv_lengths: tokens in the cache after the pass, of each request.
        num_shared_pages: pages at the front that all requests have in common.
        seed: of values and of the order of pages.
        parents: of each request the parent of each new token, -1 for one that has none; empty for a
            request without a tree. Empty altogether: the batch has no `tree_bits`.
        prefixes: of each request an earlier one, and how many pages at the front it has in common
            with that; its own number and 0 for none. Empty altogether: none has.
    """

    name: str
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    num_shared_pages: int = 0
    seed: int = 0
    parents: tuple[tuple[int, ...], ...] = ()
    prefixes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        is_long = [each != 1 for each in self.query_lengths]
        assert is_long == sorted(is_long), "requests with one query token come first"
        trees = zip(self.parents, self.query_lengths, strict=True) if self.parents else ()
        assert all(len(tree) in (0, queries) for tree, queries in trees), "a parent for each token"

    @property
    def num_decodes(self) -> int:
        """Requests with one query token."""
        return sum(1 for each in self.query_lengths if each == 1)


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch with its cache, in main memory.

    Attributes:
        canonical: pages in the canonical layout, NaN wherever no token was written: all bits are
            set there.
    """

    batch: ForwardBatch
    q: Tensor
    k: Tensor
    v: Tensor
    canonical: Tensor

    def widened(self) -> Inputs:
        """The same in float64; a coded cache stays what it is."""
        q, k, v = (each.double() for each in (self.q, self.k, self.v))
        is_coded = self.canonical.dtype is torch.uint8
        return Inputs(self.batch, q, k, v, self.canonical if is_coded else self.canonical.double())


def make_inputs(request: AttentionRequest, case: AttentionCase, score_scale: float) -> Inputs:
    """Random inputs; the same for the same arguments."""
    random = torch.Generator().manual_seed(
        sum(case.kv_lengths) + len(case.kv_lengths) + 7919 * case.seed
    )
    spec, dtype = request.kv, TORCH_DTYPES[request.dtype]
    batch, num_pages = make_batch(case, spec.page_size, random)
    heads = (request.num_heads, request.num_kv_heads, request.num_kv_heads)
    q, k, v = (
        torch.randn(batch.num_tokens, each, request.head_dim, generator=random) for each in heads
    )
    if spec.value_dim is not None:
        v = k
    shape = (num_pages, spec.num_planes, spec.page_size, request.num_kv_heads, spec.row_bytes)
    canonical = torch.full(shape, 255, dtype=torch.uint8).view(cache_dtype(spec))
    for index, (length, queries) in enumerate(
        zip(case.kv_lengths, case.query_lengths, strict=True)
    ):
        at = torch.arange(length - queries)
        pages, offsets = batch.page_table[index].long()[at // spec.page_size], at % spec.page_size
        rows = (len(at), spec.num_planes, request.num_kv_heads, request.head_dim)
        old = torch.randn(rows, generator=random)
        canonical[pages, :, offsets] = (
            old.to(canonical.dtype) if spec.coding is None else encode(old, spec.coding)
        )
    return Inputs(batch, (q * score_scale).to(dtype), k.to(dtype), v.to(dtype), canonical)


def attend(
    impl: AttentionImpl,
    request: AttentionRequest,
    inputs: Inputs | PlacedTensors,
    kv: Tensor,
    plan: Any,
) -> Tensor:
    """The implementation's output, with sinks if the request has them. Mutates: `kv`."""
    if not request.has_sinks:
        return impl.run(inputs.q, inputs.k, inputs.v, kv, plan)
    assert isinstance(impl, SinkAttention), "built for sinks, and has no run_with_sinks"
    sinks = sinks_of(request, kv.device)
    assert sinks is not None
    return impl.run_with_sinks(inputs.q, inputs.k, inputs.v, kv, plan, sinks)


def sinks_of(request: AttentionRequest, device: torch.device) -> Tensor | None:
    """The sinks that `attend` uses, `[num_heads] float32`; None if the request has none."""
    if not request.has_sinks:
        return None
    random = torch.Generator().manual_seed(request.num_heads)
    return (2 * torch.randn(request.num_heads, generator=random)).to(device)


def make_batch(case: AttentionCase, page_size: int, random: Generator) -> tuple[ForwardBatch, int]:
    """The batch, and how many pages the cache has: some more than the batch uses."""
    kv_lengths = np.array(case.kv_lengths, np.int32)
    query_lengths = np.array(case.query_lengths, np.int32)
    table, num_pages = _page_table(-(-kv_lengths // page_size), case.num_shared_pages, random)
    for index, (earlier, num_alike) in enumerate(case.prefixes):
        table[index, :num_alike] = table[earlier, :num_alike]
    places = [
        torch.arange(length - queries, length)
        for length, queries in zip(case.kv_lengths, case.query_lengths, strict=True)
    ]
    kv_rows = [
        table[index].long()[each // page_size] * page_size + each % page_size
        for index, each in enumerate(places)
    ]
    tree_bits = _tree_bits(case) if case.parents else None
    positions = torch.cat(places)
    if tree_bits is not None:
        depths = torch.tensor([_num_bits(each) - 1 for each in tree_bits.tolist()])
        cached = torch.cat([each[:1].expand(len(each)) for each in places])
        positions = torch.where(depths >= 0, cached + depths, positions)
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(query_lengths)]).astype(np.int32))
    batch = ForwardBatch(
        num_decodes=case.num_decodes,
        token_ids=torch.zeros(int(query_lengths.sum()), dtype=torch.int32),
        positions=positions.int(),
        kv_rows=torch.cat(kv_rows).int(),
        query_starts=starts,
        kv_lengths=torch.from_numpy(kv_lengths),
        page_table=table,
        logit_rows=starts[1:] - 1,
        lengths_host=HostLengths(query_lengths, kv_lengths),
        tree_bits=tree_bits,
    )
    return batch, num_pages


def _tree_bits(case: AttentionCase) -> Tensor:
    """What each token sees of the new ones, `[num_tokens, 2] int32`."""
    words = np.zeros((sum(case.query_lengths), 2), np.uint32)
    start = 0
    for parents, queries in zip(case.parents, case.query_lengths, strict=True):
        for index, parent in enumerate(parents):
            if parent >= 0:
                words[start + index] = words[start + parent]
            words[start + index, index // 32] |= np.uint32(1) << np.uint32(index % 32)
        start += queries
    return torch.from_numpy(words.view(np.int32))


def _num_bits(words: list[int]) -> int:
    return sum((each & 0xFFFFFFFF).bit_count() for each in words)


def host_lengths(batch: ForwardBatch) -> HostLengths:
    """The lengths that every batch made here has on the host."""
    assert batch.lengths_host is not None, "a batch of a recorded step has no lengths on the host"
    return batch.lengths_host


def _page_table(counts: np.ndarray, num_shared: int, random: Generator) -> tuple[Tensor, int]:
    """Pages of each request, `[num_requests, max_pages] int32`, and how many there are."""
    own = counts - num_shared
    assert (own >= 0).all(), "a request has fewer pages than all have in common"
    num_pages = int(own.sum()) + num_shared + 3
    scattered = torch.randperm(num_pages, generator=random).int()
    table = torch.zeros(len(counts), max(1, int(counts.max())), dtype=torch.int32)
    table[:, :num_shared] = scattered[:num_shared]
    taken = num_shared
    for index, count in enumerate(own.tolist()):
        table[index, num_shared : num_shared + count] = scattered[taken : taken + count]
        taken += count
    return table, num_pages


class PlacedTensors:
    """Queries, keys and values on the device as a placement says, between guards.

    Attributes:
        q, k, v: views.
    """

    def __init__(self, inputs: Inputs, placement: Placement, device: torch.device) -> None:
        tensors = (inputs.q, inputs.k, inputs.v)
        if placement is Placement.STACKED:
            sizes = [each.shape[1] for each in tensors]
            stacked, buffer = place(torch.cat(tensors, dim=1), placement, device)
            self._buffers = [buffer]
            self.q, self.k, self.v = stacked.split(sizes, dim=1)
        else:
            (self.q, self.k, self.v), self._buffers = zip(
                *(place(each, placement, device) for each in tensors), strict=True
            )
        self._before = [each.whole.clone() for each in self._buffers]

    def check(self, what: str) -> None:
        """Look whether anything was changed.

        Raises:
            AssertionError: q, k or v, or what lies around them, was.
        """
        for buffer, before in zip(self._buffers, self._before, strict=True):
            assert torch.equal(buffer.whole, before), f"{what}: q, k or v, or bytes beside, changed"


def on_device(
    batch: ForwardBatch, device: torch.device, *, first_page: int, page_size: int
) -> ForwardBatch:
    """The batch on the device, its pages moved so that page 0 becomes `first_page`.

    Entries past a request's last page stay 0, as core makes them.
    """
    counts = -(-host_lengths(batch).kv // page_size)
    is_used = np.arange(batch.page_table.shape[1]) < counts[:, None]
    moved = replace(
        batch,
        page_table=batch.page_table + torch.from_numpy(is_used).int() * first_page,
        kv_rows=batch.kv_rows + first_page * page_size,
    )
    tensors = {
        each.name: getattr(moved, each.name).to(device)
        for each in fields(moved)
        if isinstance(getattr(moved, each.name), Tensor)
    }
    return replace(moved, **tensors)
