"""Operations other than attention and linear layers, one protocol each.

A provider answers an `OpRequest` by the operation's name and returns a callable with the
operation's signature. None of them mutates its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from chiplet.api.features import Feature
from chiplet.api.provider import Provider
from chiplet.config import Dtype

if TYPE_CHECKING:
    from torch import Tensor


class Op(StrEnum):
    """Names of operations, as in `--use ops/NAME=PROVIDER`."""

    FEED = "feed"
    EMBEDDING = "embedding"
    RMS_NORM = "rms_norm"
    ADD_RMS_NORM = "add_rms_norm"
    ROTARY = "rotary"
    SILU_MUL = "silu_mul"
    PENALIZE = "penalize"
    MASK_TOKENS = "mask_tokens"
    ARGMAX = "argmax"
    SAMPLE = "sample"
    TOP_LOGPROBS = "top_logprobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRequest:
    """One operation.

    Attributes:
        op: which.
        dtype: type of its floating-point inputs.
    """

    op: Op
    dtype: Dtype

    @property
    def features(self) -> frozenset[Feature]:
        """What goes beyond the plain case: nothing yet."""
        return frozenset()


class Feed(Protocol):
    """Token ids, where those that only the device knows are looked up."""

    def __call__(self, token_ids: Tensor, last_tokens: Tensor, /) -> Tensor:
        """Shapes: token_ids `[n] int32`, of which a negative one, `-1 - slot`, stands for
        `last_tokens[slot]`; last_tokens `[slots] int32`; returns `[n] int32`.
        """
        ...


class Embedding(Protocol):
    """Rows of a table."""

    def __call__(self, token_ids: Tensor, table: Tensor, /) -> Tensor:
        """Shapes: token_ids `[n] int32`; table `[vocab, hidden]`; returns `[n, hidden]`."""
        ...


class RmsNorm(Protocol):
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32. Source: arXiv:1910.07467, eq. 4."""

    def __call__(self, x: Tensor, weight: Tensor, eps: float, /) -> Tensor:
        """Shapes: x `[n, hidden]`; weight `[hidden]`; returns `[n, hidden]`."""
        ...


class AddRmsNorm(Protocol):
    """A residual sum and its norm: s = x + residual; returns (rms_norm(s), s)."""

    def __call__(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, /
    ) -> tuple[Tensor, Tensor]:
        """Shapes: x, residual `[n, hidden]`; weight `[hidden]`; returns two of `[n, hidden]`."""
        ...


class Rotary(Protocol):
    """Rotates pairs (i, i + head_dim / 2) of queries and keys by position.

    Source: arXiv:2104.09864, eq. 34, in the half-split order of Hugging Face checkpoints.
    """

    def __call__(
        self, q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """Shapes: q `[n, num_heads, head_dim]`, k `[n, num_kv_heads, head_dim]`, either may be
        strided; positions `[n] int32`; cos_sin `[max_positions, head_dim] float32`, cosines then
        sines; returns rotated q and k in their own dtype.
        """
        ...


class SiluMul(Protocol):
    """silu(gate) * up. Source: SwiGLU, arXiv:2002.05202."""

    def __call__(self, gate_up: Tensor, /) -> Tensor:
        """Shapes: gate_up `[n, 2 * width]`, gate first; returns `[n, width]`."""
        ...


class Penalize(Protocol):
    """Makes tokens that have occurred less likely.

    Repetition (arXiv:1909.05858, section 4.1) applies to tokens of prompt or output: a positive
    logit is divided by it, a negative one multiplied. Presence is then subtracted once and
    frequency once per occurrence, for tokens of the output.
    """

    def __call__(
        self,
        logits: Tensor,
        is_in_prompt: Tensor,
        output_counts: Tensor,
        repetition: Tensor,
        presence: Tensor,
        frequency: Tensor,
        /,
    ) -> Tensor:
        """Shapes: logits `[n, vocab] float32`; is_in_prompt `[n, vocab] bool`; output_counts
        `[n, vocab] int32`; the rest `[n] float32`; returns `[n, vocab] float32`.
        """
        ...


class MaskTokens(Protocol):
    """Forbids tokens, as a grammar does: their logits become -infinity, whatever they were.

    Bit t % 32 of word t // 32 of a row is 1 if token t is allowed; bits beyond the vocabulary may
    be anything. A row that forbids nothing, or everything, is no exception.
    """

    def __call__(self, logits: Tensor, mask: Tensor, /) -> Tensor:
        """Shapes: logits `[n, vocab] float32`; mask `[n, ceil(vocab / 32)] int32`; rows of both
        possibly apart; returns `[n, vocab] float32`.
        """
        ...


class Argmax(Protocol):
    """The likeliest token of each row, the first of equals; any token for a row of NaN."""

    def __call__(self, logits: Tensor, /) -> Tensor:
        """Shapes: logits `[n, vocab]`, rows possibly apart; returns `[n] int32`."""
        ...


class Sample(Protocol):
    """Picks one token per row.

    Rows with temperature 0 take the likeliest token. Others: logits are divided by the
    temperature, then tokens are kept that are among the `top_k` likeliest, in the smallest set
    whose mass reaches `top_p` (of what top_k kept), and at least `min_p` times as likely as the
    likeliest; the likeliest itself always is. The token is found where the running sum of kept
    probabilities, in vocabulary order, first exceeds `uniform` times their total. The result of a
    row does not depend on other rows, and is a token of the vocabulary even for a row of NaN.
    """

    def __call__(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        uniform: Tensor,
        has_filters: bool,
        /,
    ) -> Tensor:
        """Shapes: logits `[n, vocab] float32`; top_k `[n] int32`, 0 means all; the other
        parameters `[n] float32`; has_filters: any row uses top_k, top_p or min_p; returns
        `[n] int32`.
        """
        ...


class TopLogprobs(Protocol):
    """Log-probabilities of chosen tokens and of the likeliest ones."""

    def __call__(self, logits: Tensor, chosen: Tensor, k: int, /) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: logits `[n, vocab] float32`; chosen `[n] int32`; returns chosen log-probability
        `[n] float32`, top token ids `[n, k] int32`, top log-probabilities `[n, k] float32`.
        """
        ...


OpImpl = Any
"""A callable with the signature of its operation's protocol."""


class OpProvider(Provider[OpRequest, OpImpl], Protocol):
    """Offers operations."""
