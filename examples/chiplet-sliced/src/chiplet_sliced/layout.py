"""Pages whose keys are transposed, so that both products of attention run along memory."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import KvSpec


class SlicedLayout:
    """`[num_pages, num_kv_heads, 2, page_size * head_dim]`.

    The first plane is a matrix of keys `[head_dim, page_size]`, the second one of values
    `[page_size, head_dim]`.
    """

    name = "sliced"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer."""
        return (num_pages, spec.num_kv_heads, 2, spec.page_size * spec.head_dim)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer."""
        return 2 * spec.page_size * spec.num_kv_heads * spec.head_dim * spec.dtype.size_bytes

    def to_canonical(self, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> Tensor:
        """Copy pages out."""
        keys, values = planes(kv[page_ids], spec.head_dim)
        return torch.stack([keys.permute(0, 3, 1, 2), values.transpose(1, 2)], dim=1)

    def from_canonical(self, canonical: Tensor, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> None:
        """Copy pages in. Mutates: `kv`."""
        keys, values = planes(kv, spec.head_dim)
        keys[page_ids] = canonical[:, 0].permute(0, 2, 3, 1)
        values[page_ids] = canonical[:, 1].transpose(1, 2)


def planes(kv: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Views of keys `[n, num_kv_heads, head_dim, page_size]` and values `[n, num_kv_heads,
    page_size, head_dim]`.
    """
    return kv[:, :, 0].unflatten(-1, (head_dim, -1)), kv[:, :, 1].unflatten(-1, (-1, head_dim))
