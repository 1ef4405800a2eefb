"""KV layout of codes in int8; all other caches have the canonical one."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import KvSpec


class ScalesBehindCodesLayout:
    """Pages as `[num_pages, 2, page_size * num_kv_heads * row_width]` bytes, keys first.

    Codes `[page_size, num_kv_heads, head_dim]` come before their scales, float32 `[page_size,
    num_kv_heads]`: rows with a scale each would begin at no multiple of 16 bytes.
    """

    name = "scales-behind-codes"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer."""
        return (num_pages, 2, spec.page_size * spec.num_kv_heads * spec.row_width)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer."""
        return 2 * spec.page_size * spec.num_kv_heads * spec.row_bytes

    def to_canonical(self, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> Tensor:
        """Copy pages out."""
        return torch.cat(_parts(kv[page_ids], spec), dim=-1)

    def from_canonical(self, canonical: Tensor, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> None:
        """Copy pages in. Mutates: `kv`."""
        codes, scales = canonical.split([spec.head_dim, spec.row_width - spec.head_dim], dim=-1)
        kv[page_ids] = torch.cat([codes.flatten(2), scales.flatten(2)], dim=-1)


def _parts(pages: Tensor, spec: KvSpec) -> tuple[Tensor, Tensor]:
    """Codes and scales, `[n, 2, page_size, num_kv_heads, ...]` bytes."""
    rows = (spec.page_size, spec.num_kv_heads, -1)
    codes = spec.page_size * spec.num_kv_heads * spec.head_dim
    return pages[..., :codes].unflatten(2, rows), pages[..., codes:].unflatten(2, rows)
