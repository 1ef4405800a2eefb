"""KvPool: the device tensors of all pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chiplet.api import KvLayout, KvSpec
from chiplet.layers.attention import PagedAttention
from chiplet.layers.context import cache_dtype


@dataclass(frozen=True, slots=True)
class KvPool:
    """The device tensors of all pages.

    Attributes:
        layers: the pages of each layer, as its layout says.
        layouts: of each group of layers.
        num_pages: pages that requests may have; one more, the last, takes what padding writes.
    """

    layers: tuple[Tensor, ...]
    layouts: dict[str, KvLayout]
    num_pages: int

    @property
    def padding_page(self) -> int:
        """The page that no request ever has."""
        return self.num_pages


def page_bytes(attention_layers: Sequence[PagedAttention]) -> int:
    """Bytes that one page takes in all layers together."""
    return sum(layer.impl.layouts()[0].page_bytes(layer.request.kv) for layer in attention_layers)


def allocate(
    attention_layers: Sequence[PagedAttention], num_pages: int, device: torch.device
) -> KvPool:
    """Room for `num_pages` pages and that of padding.

    Rows that nobody wrote may hold anything: filling a large pool would take longer than the rest
    of a start, and touch memory that may never be needed.
    """
    layouts = {layer.request.group: layer.impl.layouts()[0] for layer in attention_layers}
    layers = tuple(
        torch.empty(
            layouts[layer.request.group].shape(layer.request.kv, num_pages + 1),
            dtype=cache_dtype(layer.request.kv),
            device=device,
        )
        for layer in attention_layers
    )
    return KvPool(layers, layouts, num_pages)


_PAGES_AT_ONCE = 256


def convert(
    pool: KvPool, specs: Sequence[tuple[str, KvSpec]], layers: Sequence[PagedAttention]
) -> KvPool:
    """The same pages in the layouts of other implementations, by way of the canonical one.

    Pages of layers whose layout stays are the same tensors.

    Args:
        pool: pages as they are.
        specs: group and contents of each layer.
        layers: who will read the pages.
    """
    layouts = {layer.request.group: layer.impl.layouts()[0] for layer in layers}
    tensors = tuple(
        kv
        if layouts[group].name == pool.layouts[group].name
        else _converted(kv, pool.layouts[group], layouts[group], spec, pool.num_pages + 1)
        for kv, (group, spec) in zip(pool.layers, specs, strict=True)
    )
    return KvPool(tensors, layouts, pool.num_pages)


def _converted(kv: Tensor, old: KvLayout, new: KvLayout, spec: KvSpec, num_pages: int) -> Tensor:
    target = torch.empty(new.shape(spec, num_pages), dtype=kv.dtype, device=kv.device)
    for first in range(0, num_pages, _PAGES_AT_ONCE):
        ids = torch.arange(first, min(first + _PAGES_AT_ONCE, num_pages), device=kv.device)
        new.from_canonical(old.to_canonical(kv, ids, spec), target, ids, spec)
    return target
