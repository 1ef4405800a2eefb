"""Trees of new tokens: what stands in a batch for them, and batches that hold some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import numpy as np
import torch
from torch import Tensor

from chiplet.api import AttentionProvider, AttentionRequest, BuildContext, HostLengths
from chiplet.testing.conformance.attention import GuardedKv, run_reference
from chiplet.testing.conformance.attention_inputs import (
    AttentionCase,
    Inputs,
    PlacedTensors,
    attend,
    host_lengths,
    make_inputs,
    on_device,
)
from chiplet.testing.conformance.guards import Placement
from chiplet.testing.conformance.replay import BucketCase
from chiplet.testing.conformance.tolerance import assert_close
from chiplet.testing.conformance.verdict import is_served

Parents = tuple[int, ...]
"""The parent of each new token of a request; -1 for one that has none."""

PLAIN: Parents = ()
"""Of a request without a tree."""

MOST_TOKENS = 64
_MOST_PATHS = 3


def chain(num_tokens: int) -> Parents:
    """Each token behind the one before."""
    return tuple(range(-1, num_tokens - 1))


def random_tree(num_tokens: int, seed: int) -> Parents:
    """Any parents, several tokens without one among them."""
    random = Random(seed)
    return tuple(random.randint(max(-1, index - 9), index - 1) for index in range(num_tokens))


def tree_cases(page: int) -> tuple[AttentionCase, ...]:
    """Batches with trees, among other requests or not, for a size of pages."""
    trees = tuple(random_tree(each, each) for each in (2, 17, MOST_TOKENS))
    stars = ((-1,) * 9, (-1, *(0,) * 32))
    cached = (0, page - 1, 3 * page + 5)
    return (
        _case("chains", tuple(map(chain, (3, MOST_TOKENS))), (page, 7)),
        _case("random trees", trees, cached),
        _case("stars", stars, (2 * page, page + 3)),
        AttentionCase(
            "trees among others",
            (1, 1, 17, 70, 5),
            (1, 2 * page + 1, 17 + page, 70 + page, 5),
            parents=((-1,), PLAIN, random_tree(17, 1), PLAIN, random_tree(5, 2)),
        ),
        AttentionCase("a step without trees", (1, 9, 40), (page + 1, 9, 100)),
    )


def _case(name: str, trees: Sequence[Parents], cached: Sequence[int]) -> AttentionCase:
    lengths = tuple(len(each) for each in trees)
    kv_lengths = tuple(new + old for new, old in zip(lengths, cached, strict=True))
    return AttentionCase(name, lengths, kv_lengths, parents=tuple(trees))


def tree_bucket_cases(page: int) -> tuple[BucketCase, ...]:
    """Buckets whose steps have trees or none, for a size of pages."""
    steps = (
        _case("two trees", (random_tree(9, 3), random_tree(31, 4)), (page + 2, 5)),
        AttentionCase("none", (1, 2, 20), (page, page + 3, 41)),
        AttentionCase(
            "a tree behind a decode",
            (1, 12, 30),
            (3 * page, 12 + page, 30),
            parents=(PLAIN, random_tree(12, 5), PLAIN),
        ),
    )
    return (BucketCase("trees and none", 64, 6, 0, -(-(3 * page + 41) // page) + 1, steps),)


def check_tree_paths(
    provider: AttentionProvider,
    request: AttentionRequest,
    context: BuildContext,
    case: AttentionCase,
) -> bool:
    """Whether the provider serves trees; if so, each path sees what it sees as a chunk of its own.

    The reference knows of no tree here: a path's tokens are cached one behind another.

    Raises:
        AssertionError: a path's results are others.
    """
    assert request.has_tree, "the request has no trees"
    if not is_served(provider, request):
        return False
    inputs, device = make_inputs(request, case, 1.0), context.torch_device
    impl = provider.build(request, context)
    layout = impl.layouts()[0]
    placed = PlacedTensors(inputs, Placement.STACKED, device)
    kv = GuardedKv(layout, request.kv, inputs.canonical, device)
    batch = on_device(inputs.batch, device, first_page=0, page_size=request.kv.page_size)
    out = attend(impl, request, placed, kv.tensor, impl.plan(batch, layout)).cpu()
    causal = replace(request, has_tree=False)
    for index, tokens in _paths(case):
        alone = _alone(inputs, index, tokens, request.kv.page_size)
        exact, _ = run_reference(causal, alone.widened())
        plain, _ = run_reference(causal, alone)
        what = f"{provider.name}, {case.name}: path {tokens.tolist()} of request {index}"
        assert_close(out[tokens], plain, exact, what)
    return True


def _paths(case: AttentionCase) -> Iterator[tuple[int, Tensor]]:
    """Ways from a token without a parent to one without children, as tokens of the batch; some of
    each tree.
    """
    start = 0
    for index, (parents, queries) in enumerate(zip(case.parents, case.query_lengths, strict=True)):
        leaves = sorted(set(range(len(parents))) - set(parents))
        for leaf in leaves[:: max(1, len(leaves) // _MOST_PATHS)]:
            path = [leaf]
            while parents[path[0]] >= 0:
                path.insert(0, parents[path[0]])
            yield index, start + torch.tensor(path)
        start += queries


def _alone(inputs: Inputs, index: int, tokens: Tensor, page_size: int) -> Inputs:
    """Some tokens of a request as the only new ones, each behind the one before."""
    batch, count = inputs.batch, len(tokens)
    lengths = host_lengths(batch)
    cached = int(lengths.kv[index] - lengths.queries[index])
    at = torch.arange(cached, cached + count)
    pages = batch.page_table[index].long()[at // page_size]
    ends = torch.tensor([0, count], dtype=torch.int32)
    alone = replace(
        batch,
        num_decodes=int(count == 1),
        token_ids=batch.token_ids[tokens],
        positions=at.int(),
        kv_rows=(pages * page_size + at % page_size).int(),
        query_starts=ends,
        kv_lengths=torch.tensor([cached + count], dtype=torch.int32),
        page_table=batch.page_table[index : index + 1],
        logit_rows=ends[1:] - 1,
        lengths_host=HostLengths(np.array([count], np.int32), np.array([cached + count], np.int32)),
        tree_bits=None,
    )
    q, k, v = (each[tokens] for each in (inputs.q, inputs.k, inputs.v))
    return Inputs(alone, q, k, v, inputs.canonical.clone())
