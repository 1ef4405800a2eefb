"""Providers that are wrong in one way each, for the kit to catch."""

from __future__ import annotations

from dataclasses import replace

import torch

from chiplet.api import (
    CanonicalLayout,
    Feature,
    No,
    Op,
    Part,
    Tier,
    Yes,
)
from chiplet.reference.attention import PlainAttention
from chiplet.reference.communication import PlainCommunicator
from chiplet.reference.moe import PlainMoe
from chiplet.reference.ops import REFERENCE_OPS


class Wrong:
    """Says Yes to everything and builds with a function.

    `caught` is what the kit must say of it, so that no fault hides behind another one, like a
    crash of the wrong provider itself.
    """

    name = "wrong"
    accepts = frozenset(Feature)

    def __init__(self, build, caught="error|NaN in the result", verdict=None):
        self.make, self.caught, self.verdict = build, caught, verdict

    def assess(self, request):
        return self.verdict(request) if self.verdict else Yes(Tier.GENERIC)

    def build(self, request, context):
        return self.make(request)


class OffByOneWindow(PlainAttention):
    def __init__(self, request):
        super().__init__(request if request.window is None else _wider(request))


def _wider(request):
    return replace(request, window=request.window + 1)


class IgnoredScale(PlainAttention):
    def __init__(self, request):
        super().__init__(replace(request, scale=request.head_dim**-0.5))


class StrayWrite(PlainAttention):
    """Also writes a row of a page that is not the batch's."""

    def run(self, q, k, v, kv, plan):
        out = super().run(q, k, v, kv, plan)
        used = {int(page) for each in plan.requests for page in each.page_ids}
        free = next(page for page in range(kv.shape[0]) if page not in used)
        kv[free, 0, 0] = 1
        return out


class WriteBehindTheCache(PlainAttention):
    def run(self, q, k, v, kv, plan):
        out = super().run(q, k, v, kv, plan)
        torch.as_strided(kv, (1,), (1,), kv.storage_offset() + kv.numel()).fill_(0)
        return out


class ReadsUnwritten(PlainAttention):
    """Masks scores, and still multiplies the values that nobody wrote by zero."""

    def run(self, q, k, v, kv, plan):
        out = super().run(q, k, v, kv, plan)
        for each in plan.requests:
            values = kv[each.page_ids, 1].flatten(0, 1)
            out[each.tokens] += (0 * values.sum() * each.is_own[:, None, None]).to(out.dtype)
        return out


class SortedPages(PlainAttention):
    def plan(self, batch, layout):
        plan = super().plan(batch, layout)
        requests = [each._replace(page_ids=each.page_ids.sort().values) for each in plan.requests]
        return replace(plan, requests=tuple(requests))


class MutatesQueries(PlainAttention):
    def run(self, q, k, v, kv, plan):
        out = super().run(q, k, v, kv, plan)
        q *= 2
        return out


class AssumesContiguousQueries(PlainAttention):
    def run(self, q, k, v, kv, plan):
        dense = torch.empty(q.shape).stride()
        q = torch.as_strided(q, q.shape, dense, q.storage_offset())
        return super().run(q, k, v, kv, plan)


class SeesTheFuture(PlainAttention):
    """Masks nothing of what the cache holds."""

    def _visible(self, num_columns, positions, request):
        last = torch.full_like(positions, int(positions.max()))
        return super()._visible(num_columns, last, request)


class SeesItsCousins(PlainAttention):
    def plan(self, batch, layout):
        return super().plan(replace(batch, tree_bits=None), layout)


class TakesPlacesForPositions(PlainAttention):
    """Counts a window in the order of the cache."""

    def plan(self, batch, layout):
        shifts = batch.kv_lengths - batch.query_starts[1:]
        shifts = shifts.repeat_interleave(batch.query_starts.diff().long())
        places = torch.arange(batch.num_tokens, dtype=torch.int32) + shifts
        return super().plan(replace(batch, positions=places), layout)


class AttendsBeforeWriting(PlainAttention):
    def run(self, q, k, v, kv, plan):
        before = kv.clone()
        super().run(q, k, v, kv, plan)
        return super().run(q, 0 * k, 0 * v, before, plan)


class WrongHeadGroups(PlainAttention):
    """Query heads take key heads in turn and not in groups."""

    def run(self, q, k, v, kv, plan):
        heads = self._request.num_kv_heads
        order = torch.arange(q.shape[1]).view(-1, heads).t().flatten()
        out = super().run(q[:, order], k, v, kv, plan)
        back = torch.empty_like(out)
        back[:, order] = out
        return back


class NarrowSoftmax(PlainAttention):
    """Rounds scores to the type of the inputs."""

    def _attend(self, q, *others):
        scaled = (q * self._request.scale).to(torch.float8_e4m3fn).to(q.dtype)
        scaled = scaled / self._request.scale
        return super()._attend(scaled, *others)


class ForgetsAFullLastPage(PlainAttention):
    """A decode whose length is a multiple of the page size misses its own token."""

    def _visible(self, num_columns, positions, request):
        page = self._request.kv.page_size
        is_full = (
            (positions + 1) % page == 0 if len(positions) == 1 else torch.zeros_like(request.is_own)
        )
        positions = torch.where(is_full & (positions > 0), positions - 1, positions)
        return super()._visible(num_columns, positions, request)


class NarrowOffsets(PlainAttention):
    """Computes offsets of elements in 32 bits, and wraps around."""

    def run(self, q, k, v, kv, plan):
        if kv.numel() <= 2**31:
            return super().run(q, k, v, kv, plan)
        fitting = 2**31 // kv[0].numel()
        requests = [each._replace(page_ids=each.page_ids % fitting) for each in plan.requests]
        wrapped = replace(plan, page_ids=plan.page_ids % fitting, requests=tuple(requests))
        return super().run(q, k, v, kv, wrapped)


class LyingLayout(CanonicalLayout):
    name = "lying"

    def page_bytes(self, spec):
        return super().page_bytes(spec) // 2


class SwappingLayout(CanonicalLayout):
    """Gives values first."""

    name = "swapping"

    def to_canonical(self, kv, page_ids, spec):
        return kv[page_ids].flip(1).contiguous()


class LyingPages(PlainAttention):
    def layouts(self):
        return (LyingLayout(),)


class SwappedPages(PlainAttention):
    def layouts(self):
        return (SwappingLayout(),)


def raising(request):
    raise RuntimeError("no kernel for this shape")


def impure(request, answers=[]):  # noqa: B006 - the state is the fault
    answers.append(1)
    return Yes(len(answers))


ATTENTION = {
    "off-by-one window": Wrong(OffByOneWindow),
    "ignored scale": Wrong(IgnoredScale),
    "stray write": Wrong(StrayWrite, "stray writes in pages"),
    "write behind the cache": Wrong(WriteBehindTheCache, "bytes behind the buffer"),
    "reads unwritten rows": Wrong(ReadsUnwritten, "NaN in the result"),
    "wrong page order": Wrong(SortedPages),
    "mutates queries": Wrong(MutatesQueries, "q, k or v, or bytes beside, changed"),
    "assumes contiguous queries": Wrong(AssumesContiguousQueries),
    "sees the future": Wrong(SeesTheFuture),
    "takes trees for chains": Wrong(SeesItsCousins),
    "takes places for positions": Wrong(TakesPlacesForPositions),
    "attends before writing": Wrong(AttendsBeforeWriting),
    "wrong head groups": Wrong(WrongHeadGroups),
    "too few bits": Wrong(NarrowSoftmax),
    "forgets a full last page": Wrong(ForgetsAFullLastPage),
    "offsets of 32 bits": Wrong(NarrowOffsets, "far pages: error|NaN"),
    "page_bytes lies": Wrong(LyingPages, "page_bytes and shape disagree"),
    "layout swaps keys and values": Wrong(SwappedPages, "pages changed on the way|differs"),
    "says Yes and cannot": Wrong(raising, "raised RuntimeError: no kernel"),
    "takes the tokens of others for its own": Wrong(
        PlainAttention,
        "the reference for the rest, mixed.*",
        lambda request: Yes(Tier.GENERIC, part=Part.PROMPTS),
    ),
    "assess is impure": Wrong(PlainAttention, "assess is not pure", impure),
    "No without text": Wrong(
        PlainAttention, "without a reason", lambda request: No.because("no", "")
    ),
}


class UnlikeRouting(PlainMoe):
    """Renormalizes always."""

    def __init__(self, request):
        super().__init__(replace(request, renormalize=True))


class CapacityLimit(PlainMoe):
    """Drops tokens of an expert that has taken its fair share."""

    def run(self, x, router_logits, packed):
        out = super().run(x, router_logits, packed)
        expert = router_logits.float().nan_to_num().argmax(dim=1)
        place = torch.stack([(expert[:i] == each).sum() for i, each in enumerate(expert)])
        fair = max(1, 2 * len(x) // router_logits.shape[1])
        return torch.where((place < fair).unsqueeze(1), out, 0)


class WholeMiddle(PlainMoe):
    """Assumes that up begins at a multiple of 16 rows."""

    def run(self, x, router_logits, packed):
        width = packed.gate_up.shape[1] // 2
        if width % 16:
            packed = replace(packed, gate_up=packed.gate_up.roll(1, dims=1))
        return super().run(x, router_logits, packed)


class SumOfNan(PlainMoe):
    """Multiplies what an expert gives for tokens that did not pick it by zero."""

    def run(self, x, router_logits, packed):
        return super().run(x, router_logits, packed) + 0 * x.sum()


MOE = {
    "always renormalizes": Wrong(UnlikeRouting),
    "drops tokens over capacity": Wrong(CapacityLimit),
    "even widths only": Wrong(WholeMiddle),
    "a row of NaN spoils others": Wrong(SumOfNan, "NaN in the result"),
}


class WrongSum(PlainCommunicator):
    def all_reduce(self, x):
        return super().all_reduce(x) * 1.02


class SumsInPlace(PlainCommunicator):
    def all_reduce(self, x):
        return x.copy_(super().all_reduce(x))


class OneBuffer(PlainCommunicator):
    """Gives the same memory for each result."""

    buffer = None

    def all_reduce(self, x):
        total = super().all_reduce(x)
        if self.buffer is None or self.buffer.shape != x.shape:
            self.buffer = torch.empty_like(total)
        return self.buffer.copy_(total)


class OwnPartOnly(PlainCommunicator):
    def reduce_scatter(self, x):
        return x[self._rank].clone()


class SlabsOfPeers(PlainCommunicator):
    """Gathers where it should exchange."""

    def all_to_all(self, x):
        return super().all_gather(x[0])


class AlwaysFromRankZero(PlainCommunicator):
    def broadcast(self, x, source):
        return super().broadcast(x, 0)


class RanksDiffer(PlainCommunicator):
    """Rounds on one rank otherwise than on the other."""

    def all_reduce(self, x):
        total = super().all_reduce(x)
        return total * (1 + 1e-7 * self._rank) if x.is_floating_point() else total


class OwnMemory(PlainCommunicator):
    """Sends the memory of a tensor, whatever its strides."""

    def all_gather(self, x):
        return super().all_gather(torch.as_strided(x, x.shape, torch.empty(x.shape).stride()))


COMMUNICATION = {
    "wrong sum": Wrong(WrongSum),
    "changes its argument": Wrong(SumsInPlace, "an argument was changed"),
    "results share memory": Wrong(OneBuffer, "results are fresh"),
    "scatters and does not sum": Wrong(OwnPartOnly),
    "exchange of wrong slabs": Wrong(SlabsOfPeers, "other values than those sent"),
    "source of a broadcast ignored": Wrong(AlwaysFromRankZero, "other values than those sent"),
    "ranks round unlike": Wrong(RanksDiffer, "ranks differ"),
    "strides ignored": Wrong(OwnMemory, "strided inputs"),
}


def _interleaved(q, k, positions, cos_sin):
    return tuple(
        REFERENCE_OPS[Op.ROTARY](each.flip(-1), each.flip(-1), positions, cos_sin)[0]
        for each in (q, k)
    )


def _only(op, function, caught="error|NaN in the result"):
    provider = Wrong(lambda request: function, caught)
    provider.verdict = lambda request: (
        Yes(Tier.GENERIC) if request.op is op else No.because("op", "another one")
    )
    return provider


OPS = {
    "rotary of other pairs": _only(Op.ROTARY, _interleaved),
    "norm without eps": _only(
        Op.RMS_NORM, lambda x, weight, eps: REFERENCE_OPS[Op.RMS_NORM](x, weight, 0.0)
    ),
    "gate and up swapped": _only(
        Op.SILU_MUL, lambda x: REFERENCE_OPS[Op.SILU_MUL](torch.cat(x.chunk(2, -1)[::-1], -1))
    ),
    "bits from the wrong end": _only(
        Op.MASK_TOKENS,
        lambda x, mask: REFERENCE_OPS[Op.MASK_TOKENS](x.flip(1), mask).flip(1),
        "infinite",
    ),
    "minus infinity added": _only(
        Op.MASK_TOKENS,
        lambda x, mask: x + REFERENCE_OPS[Op.MASK_TOKENS](torch.zeros_like(x), mask),
        "infinite|NaN in the result",
    ),
    "top-p ignored": _only(
        Op.SAMPLE,
        lambda x, t, k, p, m, u, f: REFERENCE_OPS[Op.SAMPLE](x, t, k, torch.ones_like(p), m, u, f),
        "of the tokens differ",
    ),
    "logprobs of base 2": _only(
        Op.TOP_LOGPROBS,
        lambda x, c, k: REFERENCE_OPS[Op.TOP_LOGPROBS](x * 0.7, c, k),
    ),
}
