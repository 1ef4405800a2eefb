"""ForwardBatch: every tensor of one forward pass, complete at birth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """Every tensor of one forward pass.

    Requests are in plan order: those with one query token first (`num_decodes` of them), longer
    ones after. Tensors are on the device unless they end in `_host`.

    Attributes:
        num_decodes: requests at the front with exactly one query token.
        token_ids: `[num_tokens] int32`, chunk after chunk.
        positions: `[num_tokens] int32`, position of each token in its request.
        kv_rows: `[num_tokens] int64`, where a token's keys and values go: page id * page size
            + offset in the page.
        query_starts: `[num_requests + 1] int32`, first token of each request, and the end.
        kv_lengths: `[num_requests] int32`, tokens a request has in the cache after this pass.
        page_table: `[num_requests, max_pages] int32`, pages of each request in order; entries
            past its last page are 0 and must not be read as KV.
        logit_rows: `[num_logit_rows] int64`, tokens whose logits are wanted.
        query_lengths_host: `[num_requests] int32`.
        kv_lengths_host: `[num_requests] int32`.
    """

    num_decodes: int
    token_ids: Tensor
    positions: Tensor
    kv_rows: Tensor
    query_starts: Tensor
    kv_lengths: Tensor
    page_table: Tensor
    logit_rows: Tensor
    query_lengths_host: NDArray[np.int32]
    kv_lengths_host: NDArray[np.int32]

    @property
    def num_requests(self) -> int:
        """Requests in the batch."""
        return len(self.query_lengths_host)

    @property
    def num_tokens(self) -> int:
        """Tokens in the batch."""
        return self.token_ids.shape[0]
