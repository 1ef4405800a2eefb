"""Parts: one attention made of two, one for prompts and one for all else.

Both work on the same pages. The host knows where decodes end and prompts begin, so that neither
needs more than views of the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from chiplet.api import (
    AttentionImpl,
    AttentionPlan,
    ForwardBatch,
    HostLengths,
    HostPlanning,
    KvLayout,
    PlanStorage,
    ShapeBucket,
    StepInputs,
)

if TYPE_CHECKING:
    from torch import Tensor


class PartedPlan(NamedTuple):
    """Plans of one step.

    Attributes:
        num_decodes: requests, and tokens, at the front that are not prompts.
        prompts: plan of the prompts; None if all goes to the other.
        others: plan of all else; None if there is nothing else.
    """

    num_decodes: int
    prompts: AttentionPlan | None
    others: AttentionPlan | None


class PartedAttention:
    """Prompts to one implementation, all else to another; see `chiplet.api.Part`."""

    def __init__(self, prompts: AttentionImpl, others: AttentionImpl) -> None:
        """Take implementations that have a layout in common."""
        self._prompts = prompts
        self._others = others
        self._layouts = common_layouts(prompts, others)

    def layouts(self) -> tuple[KvLayout, ...]:
        """What both can work on, in the order of who serves prompts."""
        return self._layouts

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> PartedPlan:
        """Plan each part that there is; see `chiplet.api.AttentionImpl.plan`."""
        count = batch.num_decodes
        if batch.lengths_host is None or count == batch.num_requests:
            return PartedPlan(0, None, self._others.plan(batch, layout))
        prompts = self._prompts.plan(_prompts_of(batch, batch.lengths_host), layout)
        if not count:
            return PartedPlan(0, prompts, None)
        decodes = _decodes_of(batch, batch.lengths_host)
        return PartedPlan(count, prompts, self._others.plan(decodes, layout))

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: PartedPlan) -> Tensor:
        """Run each part; see `chiplet.api.AttentionImpl.run`."""
        if plan.prompts is None:
            return self._others.run(q, k, v, kv, plan.others)
        out = self._prompts.run(q, k, v, kv, plan.prompts)
        if plan.others is not None:
            front = slice(plan.num_decodes)
            out[front] = self._others.run(q[front], k[front], v[front], kv, plan.others)
        return out


class HostPlannedParts(PartedAttention):
    """The same, where who serves recorded steps plans them on the host."""

    def __init__(self, prompts: AttentionImpl, others: AttentionImpl) -> None:
        super().__init__(prompts, others)
        assert isinstance(others, HostPlanning)
        self._planning: HostPlanning = others

    def plan_storage(self, bucket: ShapeBucket, layout: KvLayout) -> PartedStorage:
        """Storage of the implementation that serves recorded steps."""
        return PartedStorage(self._planning.plan_storage(bucket, layout))


class PartedStorage:
    """Plans of a recorded step, which has one part only; see `chiplet.api.PlanStorage`."""

    def __init__(self, storage: PlanStorage) -> None:
        self._storage = storage
        self.plan: AttentionPlan = PartedPlan(0, None, storage.plan)

    def update(self, host: StepInputs[NDArray[Any]]) -> None:
        """Plan the step that is launched next."""
        self._storage.update(host)


def parted_attention(prompts: AttentionImpl, others: AttentionImpl) -> PartedAttention:
    """One implementation of both."""
    kind = HostPlannedParts if isinstance(others, HostPlanning) else PartedAttention
    return kind(prompts, others)


def common_layouts(prompts: AttentionImpl, others: AttentionImpl) -> tuple[KvLayout, ...]:
    """Layouts of the first that the second has too."""
    names = {each.name for each in others.layouts()}
    return tuple(each for each in prompts.layouts() if each.name in names)


def _prompts_of(batch: ForwardBatch, lengths: HostLengths) -> ForwardBatch:
    """Requests behind the decodes; all tokens are kept."""
    count = batch.num_decodes
    return replace(
        batch,
        num_decodes=0,
        query_starts=batch.query_starts[count:],
        kv_lengths=batch.kv_lengths[count:],
        page_table=batch.page_table[count:],
        lengths_host=HostLengths(lengths.queries[count:], lengths.kv[count:]),
    )


def _decodes_of(batch: ForwardBatch, lengths: HostLengths) -> ForwardBatch:
    """The decodes at the front; each request has one token."""
    count = batch.num_decodes
    return replace(
        batch,
        token_ids=batch.token_ids[:count],
        positions=batch.positions[:count],
        kv_rows=batch.kv_rows[:count],
        query_starts=batch.query_starts[: count + 1],
        kv_lengths=batch.kv_lengths[:count],
        page_table=batch.page_table[:count],
        lengths_host=HostLengths(lengths.queries[:count], lengths.kv[:count]),
        tree_bits=None,  # one token alone is no tree
    )
