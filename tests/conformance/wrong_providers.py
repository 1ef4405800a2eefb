"""Providers that are wrong in one way each, for the kit to catch."""

from __future__ import annotations

from dataclasses import replace

import torch

from chiplet.api import Feature, No, Op, Tier, Yes
from chiplet.reference.attention import CanonicalLayout, PlainAttention
from chiplet.reference.linear import PlainLinear
from chiplet.reference.ops import REFERENCE_OPS


class Wrong:
    """Says Yes to everything and builds with a function."""

    name = "wrong"
    accepts = frozenset(Feature)

    def __init__(self, build, verdict=None):
        self.make, self.verdict = build, verdict

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
        used = {int(page) for each in plan.requests for page in each[3]}
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
        for start, length, kv_length, pages in plan.requests:
            beyond = kv[pages, 1].flatten(0, 1)[kv_length:]
            if len(beyond):
                out[start : start + length] += (0 * beyond.sum()).to(out.dtype)
        return out


class SortedPages(PlainAttention):
    def plan(self, batch, layout):
        plan = super().plan(batch, layout)
        requests = tuple((*each[:3], each[3].sort().values) for each in plan.requests)
        return replace(plan, requests=requests)


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

    def _attend(self, q, keys, values):
        rows = [super(SeesTheFuture, self)._attend(row[None], keys, values) for row in q]
        return torch.cat(rows)


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

    def _attend(self, q, keys, values):
        scaled = (q * self._request.scale).to(torch.float8_e4m3fn).to(q.dtype)
        return super()._attend(scaled / self._request.scale, keys, values)


class ForgetsAFullLastPage(PlainAttention):
    def plan(self, batch, layout):
        plan = super().plan(batch, layout)
        page = self._request.kv.page_size
        cut = tuple(
            (start, length, kv - 1 if kv % page == 0 and length == 1 and kv > 1 else kv, pages)
            for start, length, kv, pages in plan.requests
        )
        return replace(plan, requests=cut)


class NarrowOffsets(PlainAttention):
    """Computes offsets of elements in 32 bits, and wraps around."""

    def run(self, q, k, v, kv, plan):
        if kv.numel() <= 2**31:
            return super().run(q, k, v, kv, plan)
        fitting = 2**31 // kv[0].numel()
        requests = tuple((*each[:3], each[3] % fitting) for each in plan.requests)
        wrapped = replace(plan, page_ids=plan.page_ids % fitting, requests=requests)
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
    "stray write": Wrong(StrayWrite),
    "write behind the cache": Wrong(WriteBehindTheCache),
    "reads unwritten rows": Wrong(ReadsUnwritten),
    "wrong page order": Wrong(SortedPages),
    "mutates queries": Wrong(MutatesQueries),
    "assumes contiguous queries": Wrong(AssumesContiguousQueries),
    "sees the future": Wrong(SeesTheFuture),
    "attends before writing": Wrong(AttendsBeforeWriting),
    "wrong head groups": Wrong(WrongHeadGroups),
    "too few bits": Wrong(NarrowSoftmax),
    "forgets a full last page": Wrong(ForgetsAFullLastPage),
    "offsets of 32 bits": Wrong(NarrowOffsets),
    "page_bytes lies": Wrong(LyingPages),
    "layout swaps keys and values": Wrong(SwappedPages),
    "says Yes and cannot": Wrong(raising),
    "assess is impure": Wrong(PlainAttention, impure),
    "No without text": Wrong(PlainAttention, lambda request: No.because("no", "")),
}


class NoBias(PlainLinear):
    def pack(self, weight, bias):
        return super().pack(weight, None)


class NarrowSum(PlainLinear):
    def run(self, x, packed):
        half = super().run(
            x.bfloat16(), type(packed)(*(p if p is None else p.bfloat16() for p in packed))
        )
        return half.to(x.dtype)


class LastRowMissing(PlainLinear):
    """A tile of 8 rows whose tail is forgotten."""

    def run(self, x, packed):
        out = super().run(x, packed)
        out[len(out) // 8 * 8 :] = 0
        return out


class MutatesInput(PlainLinear):
    def run(self, x, packed):
        out = super().run(x, packed)
        x.zero_()
        return out


LINEAR = {
    "bias left out": Wrong(lambda request: NoBias()),
    "sums in bfloat16": Wrong(lambda request: NarrowSum()),
    "tail of a tile": Wrong(lambda request: LastRowMissing()),
    "mutates its input": Wrong(lambda request: MutatesInput()),
}


def _interleaved(q, k, positions, cos_sin):
    return tuple(
        REFERENCE_OPS[Op.ROTARY](each.flip(-1), each.flip(-1), positions, cos_sin)[0]
        for each in (q, k)
    )


def _only(op, function):
    provider = Wrong(lambda request: function)
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
    "top-p ignored": _only(
        Op.SAMPLE,
        lambda x, t, k, p, m, u, f: REFERENCE_OPS[Op.SAMPLE](x, t, k, torch.ones_like(p), m, u, f),
    ),
    "logprobs of base 2": _only(
        Op.TOP_LOGPROBS,
        lambda x, c, k: REFERENCE_OPS[Op.TOP_LOGPROBS](x * 0.7, c, k),
    ),
}
