"""The page layouts of this plugin."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import KvSpec


class HeadFirstLayout:
    """Pages as `[num_pages, num_kv_heads, page_size, 2 * head_dim]`: keys and values side by side.

    A head's page is one run of memory, and a head dim of 64 fills the 128 lanes of a tile.
    """

    name = "head-first"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer."""
        return (num_pages, spec.num_kv_heads, spec.page_size, 2 * spec.head_dim)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer, the lanes that a tile leaves empty included."""
        width = -(-2 * spec.head_dim // 128) * 128
        return spec.num_kv_heads * spec.page_size * width * spec.dtype.size_bytes

    def to_canonical(self, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> Tensor:
        """Copy pages out."""
        pages = kv[page_ids].transpose(1, 2)  # [n, page_size, num_kv_heads, 2 * head_dim]
        return torch.stack(pages.split(spec.head_dim, dim=-1), dim=1)

    def from_canonical(self, canonical: Tensor, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> None:
        """Copy pages in. Mutates: `kv`."""
        keys, values = canonical.unbind(1)
        kv[page_ids] = torch.cat([keys, values], dim=-1).transpose(1, 2)


class InterleavedLayout:
    """Pages as `[num_pages, page_size, 2 * num_kv_heads, head_dim]`: key, value, head by head.

    That of jax's ragged paged attention.
    """

    name = "interleaved"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer."""
        return (num_pages, spec.page_size, 2 * spec.num_kv_heads, spec.head_dim)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer."""
        return 2 * spec.page_size * spec.num_kv_heads * spec.head_dim * spec.dtype.size_bytes

    def to_canonical(self, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> Tensor:
        """Copy pages out."""
        pages = kv[page_ids].unflatten(2, (spec.num_kv_heads, 2))
        return torch.stack(pages.unbind(3), dim=1)

    def from_canonical(self, canonical: Tensor, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> None:
        """Copy pages in. Mutates: `kv`."""
        keys, values = canonical.unbind(1)
        kv[page_ids] = torch.stack([keys, values], dim=3).flatten(2, 3)
