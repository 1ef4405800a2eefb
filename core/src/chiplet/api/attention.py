"""Attention over the paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from numpy.typing import NDArray

from chiplet.api.executable import ShapeBucket, StepInputs
from chiplet.api.features import Feature
from chiplet.api.provider import Provider
from chiplet.config import Dtype
from chiplet.forward_batch import ForwardBatch

if TYPE_CHECKING:
    import torch


class KvCoding(StrEnum):
    """How keys and values are cached in eight bits each."""

    INT8 = "int8"
    """Of each token and head, `head_dim` whole numbers, then their scale, a float32. With m the
    largest magnitude in float32, the scale is m / 127 and a code x * (127 / m), rounded to the
    nearest, ties to even; where m is below 1e-30, all codes are 0."""
    FP8 = "fp8"
    """E4M3 of arXiv:2209.05433, rounded to the nearest, ties to even; what is beyond 448 becomes
    448. There is no scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSpec:
    """What one layer's KV cache must hold.

    Attributes:
        num_kv_heads: heads of keys and values, of this rank.
        head_dim: elements of a head.
        page_size: tokens per page.
        dtype: type of cached keys and values, unless they are coded.
        coding: of keys and values in eight bits; None keeps them in `dtype`. The cache is a tensor
            of bytes then.
        value_dim: a value is the first `value_dim` elements of its key, and not cached once more;
            None caches values of their own, as wide as keys.
    """

    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: Dtype
    coding: KvCoding | None = None
    value_dim: int | None = None

    @property
    def num_planes(self) -> int:
        """Rows of a token and head: a key and a value, or a key alone."""
        return 2 if self.value_dim is None else 1

    @property
    def row_width(self) -> int:
        """Elements of a token's key, or value, of one head: bytes if it is coded."""
        return self.head_dim + (4 if self.coding is KvCoding.INT8 else 0)

    @property
    def row_bytes(self) -> int:
        """Bytes of a token's key, or value, of one head."""
        return self.row_width * (1 if self.coding else self.dtype.size_bytes)


class KvLayout(Protocol):
    """Shape of one layer's pages, and the way to and from the canonical layout.

    The canonical layout of `n` pages is `[n, num_planes, page_size, num_kv_heads, row_width]`, keys
    first, contiguous, in the cache's dtype; bytes where they are coded, those of a scale in the
    host's order.

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

        Shapes: canonical as the class says, `[n, num_planes, page_size, num_kv_heads, row_width]`;
        kv as `shape` says; page_ids `[n] int64`.
        Mutates: `kv`, at `page_ids`.
        """
        ...


class CanonicalLayout:
    """A `KvLayout` whose pages are canonical as they lie."""

    name = "canonical"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer; see `KvLayout`."""
        return (num_pages, spec.num_planes, spec.page_size, spec.num_kv_heads, spec.row_width)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer."""
        return spec.num_planes * spec.page_size * spec.num_kv_heads * spec.row_bytes

    def to_canonical(self, kv: torch.Tensor, page_ids: torch.Tensor, spec: KvSpec) -> torch.Tensor:
        """Copy pages out; see `KvLayout`."""
        return kv[page_ids]

    def from_canonical(
        self, canonical: torch.Tensor, kv: torch.Tensor, page_ids: torch.Tensor, spec: KvSpec
    ) -> None:
        """Copy pages in; see `KvLayout`. Mutates: `kv`, at `page_ids`."""
        kv[page_ids] = canonical


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
        softcap: a score s, after `scale`, becomes softcap * tanh(s / softcap); None leaves it.
            Source: arXiv:2408.00118, section 2.
        has_sinks: see `SinkAttention`.
        num_captured: tokens that `CapturingAttention` gives of each token and head; 0 for none.
        has_tree: batches may have `tree_bits`, see `ForwardBatch`; a batch without them is causal.
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
    softcap: float | None = None
    has_sinks: bool = False
    has_tree: bool = False
    num_captured: int = 0

    @property
    def features(self) -> frozenset[Feature]:
        """What goes beyond the plain case."""
        needed: set[Feature] = set()
        if self.window is not None:
            needed.add(Feature.SLIDING_WINDOW)
        if self.kv.dtype != self.dtype:
            needed.add(Feature.MIXED_KV_DTYPE)
        if self.kv.coding is not None:
            needed.add(Feature.INT8_KV if self.kv.coding is KvCoding.INT8 else Feature.FP8_KV)
        if self.softcap is not None:
            needed.add(Feature.SOFTCAP)
        if self.has_sinks:
            needed.add(Feature.SINKS)
        if self.has_tree:
            needed.add(Feature.TREE_MASK)
        if self.kv.value_dim is not None:
            needed.add(Feature.LATENT_KV)
        if self.num_captured:
            needed.add(Feature.CAPTURE)
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
        sees positions 0 to its own (within the window), unless the batch has a tree of it.

        Shapes: q `[num_tokens, num_heads, head_dim]`; k, v `[num_tokens, num_kv_heads,
        head_dim]`, possibly strided, last dimension contiguous; kv as the layout says, where rows
        that nobody wrote may hold anything, NaN included; returns
        `[num_tokens, num_heads, head_dim]`. Where values are parts of keys, v is k and need not be
        looked at, and what returns is `[num_tokens, num_heads, value_dim]`.
        Mutates: `kv`, at the batch's `kv_rows`.
        """
        ...


@runtime_checkable
class SinkAttention(Protocol):
    """What an `AttentionImpl` has besides, if the request has sinks; called in place of `run`.

    A sink is one more score of a head, seen by all tokens, that has no value: softmax shares out
    weight to it, and what it takes is lost. Source: arXiv:2309.17453, section 3, and the learned
    form of gpt-oss.
    """

    def run_with_sinks(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv: torch.Tensor,
        plan: AttentionPlan,
        sinks: torch.Tensor,
    ) -> torch.Tensor:
        """See `AttentionImpl.run`.

        Shapes: sinks `[num_heads] float32`, neither scaled nor capped; the others as there.
        Mutates: `kv`, at the batch's `kv_rows`.
        """
        ...


class Captured(NamedTuple):
    """The cached tokens to which each new token and head gives most weight, n of them.

    Attributes:
        tokens: `[num_tokens, num_heads, n] int32`, places among those cached of the request; -1
            where fewer are seen.
        weights: `[num_tokens, num_heads, n] float32`, after softmax, largest first; 0 where there
            is no token.
    """

    tokens: torch.Tensor
    weights: torch.Tensor


@runtime_checkable
class CapturingAttention(Protocol):
    """What an `AttentionImpl` has besides, if the request captures tokens."""

    def capture(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        plan: AttentionPlan,
        sinks: torch.Tensor | None,
    ) -> Captured:
        """Give the tokens with most weight, of a layer that someone looks at.

        Called behind `run` of the layer, whose keys are cached then, with the same arguments. Among
        equal weights any order will do; rows of padding may be anything.

        Shapes: q, kv as in `AttentionImpl.run`; sinks as in `SinkAttention.run_with_sinks`, None if
        the request has none.
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
