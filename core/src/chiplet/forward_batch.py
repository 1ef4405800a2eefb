"""ForwardBatch: every tensor of one forward pass, complete at birth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class HostLengths:
    """Lengths of a batch on the host.

    Attributes:
        queries: `[num_requests] int32`, query tokens of each request.
        kv: `[num_requests] int32`, tokens a request has in the cache after this pass.
    """

    queries: NDArray[np.int32]
    kv: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """Every tensor of one forward pass, on the device.

    Requests are in plan order: those with one query token first, longer ones after. A batch that
    runs in a bucket is filled up with padding, whose results may be anything:

    - Padding requests follow the real ones. Among the first `num_decodes` requests they have one
      token, at position 0 of the padding page: KV length 1. After those, query length 0 and KV
      length 0.
    - Padding tokens lie after `query_starts[-1]`, at position 0.
    - Padding writes its keys and values to the padding page, which no request ever has.
    - Padding rows of `logit_rows` are 0.

    Attributes:
        num_decodes: requests at the front known to have exactly one query token; others may have
            one too.
        token_ids: `[num_tokens] int32`, request after request.
        positions: `[num_tokens] int32`, position of each token in its request.
        kv_rows: `[num_tokens] int32`, where a token's keys and values go: page id * page size
            + offset in the page. Offsets of elements may need 64 bits: widen before multiplying.
        query_starts: `[num_requests + 1] int32`, first token of each request, and the end. The
            first is 0, but for an implementation that speaks for prompts alone; see
            `chiplet.api.Part`.
        kv_lengths: `[num_requests] int32`, tokens a request has in the cache after this pass.
        page_table: `[num_requests, max_pages] int32`, pages of each request in order; entries
            past its last page are ids of pages that must not be used as its KV.
        logit_rows: `[num_logit_rows] int32`, tokens whose logits are wanted; each token in turn
            where there are decodes only, and as many rows as tokens.
        lengths_host: the lengths, where the host knows them; None in a step that is recorded or
            compiled, which runs again with other lengths.
        tree_bits: `[num_tokens, 2] int32`, which new tokens of its request a token sees, for
            groups of layers whose request has a tree: bit j of word w stands for number 32 * w + j.
            A tree's token sees itself, its parent, and what that sees, all of them numbers up to
            its own; and every token cached before the new ones. It stands behind its parent:
            `positions` has kv_length - query_length + the number of its bits - 1, and the window is
            one of positions. Keys and values are cached in the order of tokens all the same. A
            request has at most 64 new tokens then. Words of 0 mark tokens of a request without a
            tree, which see what is before them. None: no request has one.
    """

    num_decodes: int
    token_ids: Tensor
    positions: Tensor
    kv_rows: Tensor
    query_starts: Tensor
    kv_lengths: Tensor
    page_table: Tensor
    logit_rows: Tensor
    lengths_host: HostLengths | None
    tree_bits: Tensor | None = None

    @property
    def num_requests(self) -> int:
        """Requests in the batch, padding included."""
        return self.kv_lengths.shape[0]

    def at_logit_rows(self, x: Tensor) -> Tensor:
        """Rows of hidden states whose logits are wanted: x itself where it is each in turn.

        Shapes: x `[num_tokens, width]`; returns `[num_logit_rows, width]`.
        """
        is_each = self.num_decodes == self.num_tokens == self.logit_rows.shape[0]
        return x if is_each else x[self.logit_rows]

    @property
    def num_tokens(self) -> int:
        """Tokens in the batch, padding included."""
        return self.token_ids.shape[0]
