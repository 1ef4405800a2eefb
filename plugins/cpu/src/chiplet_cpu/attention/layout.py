"""KV layouts of the CPU plugin: in each page, the tokens of one head lie together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from chiplet.api import KvSpec


class HeadsInPageLayout:
    """Pages as `[num_pages, 2, num_kv_heads, page_size, head_dim]`, keys first.

    A gather of rows `[page_size * head_dim]` yields keys and values with one head's tokens
    contiguous, which is the order that matrix products read; and a page stays in one piece.
    """

    name = "heads-in-page"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer."""
        return (num_pages, 2, spec.num_kv_heads, spec.page_size, spec.head_dim)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer."""
        return 2 * spec.num_kv_heads * spec.page_size * spec.head_dim * spec.dtype.size_bytes

    def to_canonical(self, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> Tensor:
        """Copy pages out."""
        return kv[page_ids].transpose(2, 3).contiguous()

    def from_canonical(self, canonical: Tensor, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> None:
        """Copy pages in. Mutates: `kv`."""
        kv[page_ids] = canonical.transpose(2, 3)


class WordsInPageLayout:
    """The order that `kernels/attention.h` multiplies in, by 32-bit words.

    P elements share a word: 2 of 16 bits, or one float32. Of each page come keys, then values; of
    each head come keys as `[head_dim / P, page_size, P]`, or values as `[page_size / P, head_dim,
    P]`. Codes of eight bits lie like elements of 16; behind those of a head come the scales of its
    tokens, if they have any. The tensor's shape counts the same elements without their order.
    """

    name = "words-in-page"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer."""
        return (num_pages, 2, spec.num_kv_heads, spec.page_size, spec.row_width)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer."""
        return 2 * spec.num_kv_heads * spec.page_size * spec.row_bytes

    def to_canonical(self, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> Tensor:
        """Copy pages out."""
        pages = kv[page_ids]
        shape = (len(page_ids), 2, spec.page_size, spec.num_kv_heads, spec.row_width)
        canonical = torch.empty(shape, dtype=kv.dtype)
        for words, tokens in _in_words(pages, canonical, spec):
            tokens.copy_(words)
        return canonical

    def from_canonical(self, canonical: Tensor, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> None:
        """Copy pages in. Mutates: `kv`."""
        pages = torch.empty(self.shape(spec, len(page_ids)), dtype=kv.dtype)
        for words, tokens in _in_words(pages, canonical, spec):
            words.copy_(tokens)
        kv[page_ids] = pages


def _in_words(pages: Tensor, canonical: Tensor, spec: KvSpec) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys, values, and scales: views of the pages and of their canonical form, byte for byte."""
    per_word = elements_per_word(spec)
    page_size, head_dim = spec.page_size, spec.head_dim
    num_elements = page_size * head_dim
    heads = pages.flatten(3)  # [n, 2, num_kv_heads, page_size * row_width]
    keys = heads[:, 0, :, :num_elements].unflatten(2, (head_dim // per_word, page_size, per_word))
    values = heads[:, 1, :, :num_elements].unflatten(2, (page_size // per_word, head_dim, per_word))
    rows = canonical.permute(1, 0, 3, 2, 4)  # [2, n, num_kv_heads, page_size, row_width]
    tokens = rows[..., :head_dim]
    yield keys, tokens[0].unflatten(3, (-1, per_word)).transpose(2, 3)
    yield values, tokens[1].unflatten(2, (-1, per_word)).transpose(3, 4)
    if spec.row_width > head_dim:
        scales = heads[..., num_elements:].unflatten(3, (page_size, -1))
        yield scales.transpose(0, 1), rows[..., head_dim:]


def elements_per_word(spec: KvSpec) -> int:
    """Elements that are multiplied together: those in 32 bits, of codes those in 16."""
    return 2 if spec.coding else 4 // spec.dtype.size_bytes
