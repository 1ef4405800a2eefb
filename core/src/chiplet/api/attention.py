"""Attention over the paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from chiplet.api.executable import ShapeBucket, StepInputs
from chiplet.api.features import Feature
from chiplet.api.provider import Provider
from chiplet.config import Dtype
from chiplet.forward_batch import ForwardBatch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSpec:
    """What one layer's KV cache must hold.

    Attributes:
        num_kv_heads: heads of keys and values, of this rank.
        head_dim: elements of a head.
        page_size: tokens per page.
        dtype: type of cached keys and values.
    """

    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: Dtype


class KvLayout(Protocol):
    """Shape of one layer's pages, and the way to and from the canonical layout.

    The canonical layout of `n` pages is `[n, 2, page_size, num_kv_heads, head_dim]`, keys first,
    contiguous, in the cache's dtype.

    Attributes:
        name: two layouts with the same name and spec are the same.
    """

    name: str

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of the tensor that holds all pages of one layer; pages need not come first."""
        ...

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer."""
        ...

    def to_canonical(self, kv: torch.Tensor, page_ids: torch.Tensor, spec: KvSpec) -> torch.Tensor:
        """Copy pages out.

        Shapes: kv as `shape` says; page_ids `[n] int64`; returns the canonical layout.
        """
        ...

    def from_canonical(
        self, canonical: torch.Tensor, kv: torch.Tensor, page_ids: torch.Tensor, spec: KvSpec
    ) -> None:
        """Copy pages in.

        Shapes: canonical `[n, 2, page_size, num_kv_heads, head_dim]`; kv as `shape` says; page_ids
        `[n] int64`.
        Mutates: `kv`, at `page_ids`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRequest:
    """One group of layers that attend alike: causal, multi-head with grouped keys and values.

    Attributes:
        group: the name in `--use attention/GROUP=NAME`: 'global' or 'window'.
        num_heads: heads of queries, of this rank; a multiple of `num_kv_heads`.
        num_kv_heads: heads of keys and values; query head h reads number
            h * num_kv_heads // num_heads.
        head_dim: elements of a head.
        scale: factor on the scores before softmax.
        dtype: type of queries, new keys and values, and output.
        kv: what the cache of each layer holds.
        window: a token sees the last `window` tokens, itself included; None sees all.
        features: derived from the fields above; checked before `assess`.
    """

    group: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    dtype: Dtype
    kv: KvSpec
    window: int | None = None

    @property
    def features(self) -> frozenset[Feature]:
        """What goes beyond the plain case."""
        needed: set[Feature] = set()
        if self.window is not None:
            needed.add(Feature.SLIDING_WINDOW)
        if self.kv.dtype != self.dtype:
            needed.add(Feature.MIXED_KV_DTYPE)
        return frozenset(needed)


AttentionPlan = Any
"""What an implementation prepares once per step; opaque to core."""


class AttentionImpl(Protocol):
    """Attention of one group of layers."""

    def layouts(self) -> tuple[KvLayout, ...]:
        """KV layouts that `run` can work on, best first. Core picks one for each layer group."""
        ...

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> AttentionPlan:
        """Prepare a step; called once per step and group, before any `run` of the step.

        Does not block on the device. Two plans may be alive at a time. It is part of the step that
        is recorded or compiled, where `batch.lengths_host` is None: then it must be made of tensor
        operations alone, whose shapes depend on no value. An implementation that needs the
        host's lengths has `plan_storage` too, see `HostPlanning`, or serves eager steps only.

        Raises:
            NotImplementedError: it serves eager steps only, and `batch.lengths_host` is None.
        """
        ...

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv: torch.Tensor,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        """Write new keys and values to the cache, then attend.

        Token i of a request with query length Q and KV length L stands at position L - Q + i and
        sees positions 0 to its own (within the window).

        Shapes: q `[num_tokens, num_heads, head_dim]`; k, v `[num_tokens, num_kv_heads,
        head_dim]`, possibly strided, last dimension contiguous; kv as the layout says, where rows
        that nobody wrote may hold anything, NaN included; returns
        `[num_tokens, num_heads, head_dim]`.
        Mutates: `kv`, at the batch's `kv_rows`.
        """
        ...


class PlanStorage(Protocol):
    """Where an implementation that plans on the host keeps its plan of one bucket.

    Attributes:
        plan: what `run` takes while the step is recorded; the same object ever after.
    """

    plan: AttentionPlan

    def update(self, host: StepInputs[NDArray[Any]]) -> None:
        """Plan the step that is launched next; called before each launch of the bucket.

        Queues copies in the order of the device's work and does not wait. Up to two steps are in
        flight: host memory from which an earlier copy may still read must not be overwritten.

        Shapes: see `StepInputs`; padding as in `ForwardBatch`.
        """
        ...


@runtime_checkable
class HostPlanning(Protocol):
    """What an `AttentionImpl` has besides, if it plans on the host and can be recorded."""

    def plan_storage(self, bucket: ShapeBucket, layout: KvLayout) -> PlanStorage:
        """Fixed-address storage for the plans of a bucket; called once per bucket and group,
        before the step is recorded. In that step `plan` is not called.
        """
        ...


class AttentionProvider(Provider[AttentionRequest, AttentionImpl], Protocol):
    """Offers attention."""
