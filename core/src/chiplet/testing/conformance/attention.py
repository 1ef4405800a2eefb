"""Attention and KV layouts against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from chiplet.api import (
    AttentionImpl,
    AttentionProvider,
    AttentionRequest,
    BuildContext,
    CanonicalLayout,
    KvLayout,
    KvSpec,
    Part,
    Yes,
)
from chiplet.layers.context import cache_dtype
from chiplet.plugins.parts import common_layouts, parted_attention
from chiplet.reference.attention import PlainAttention
from chiplet.testing.conformance.attention_inputs import (
    AttentionCase,
    Inputs,
    PlacedTensors,
    attend,
    make_inputs,
    on_device,
)
from chiplet.testing.conformance.case import Skipped
from chiplet.testing.conformance.guards import GuardedBuffer, Placement
from chiplet.testing.conformance.tolerance import TORCH_DTYPES, assert_close
from chiplet.testing.conformance.verdict import is_served

# Element offsets from here on do not fit a signed number of 32 bits.
_FAR = 2**31


def lengths_to_try(page: int = 16) -> tuple[AttentionCase, ...]:
    """Lengths at which implementations go wrong, for a size of pages."""
    around = tuple(
        sorted({each for each in (1, page - 1, page, page + 1, 2 * page, 5 * page - 1) if each > 0})
    )
    return (
        AttentionCase("one token", (1,), (1,)),
        AttentionCase("decode one", (1,), (37,)),
        AttentionCase("decode around a page", (1,) * len(around), around),
        AttentionCase("decode of unlike lengths", (1,) * 7, (300, 3, 17, 90, 2, 170, 40)),
        AttentionCase("whole prompt", (50,), (50,)),
        AttentionCase("prompts around a page", around[1:], around[1:]),
        AttentionCase("chunks with prefix", (5, page + 1, 33), (page + 5, 3 * page + 1, page + 60)),
        AttentionCase("last chunk of two", (2, 3), (page + 2, page + 3)),
        AttentionCase("mixed", (1, 1, 9, 40), (77, 1, 9, 100)),
        AttentionCase("long chunk with prefix", (530,), (600,)),
    )


ATTENTION_CASES = lengths_to_try()
"""Lengths at which implementations go wrong, for pages of 16 tokens."""


def check_attention(
    provider: AttentionProvider,
    request: AttentionRequest,
    context: BuildContext,
    case: AttentionCase,
    *,
    score_scale: float = 1.0,
    placement: Placement = Placement.STACKED,
) -> bool:
    """Whether the provider serves the request; if it does, result and cache are compared.

    Pages are scattered, the cache is NaN wherever no token was written, and every buffer lies
    between guards. A provider that speaks for a part of the steps is checked alone, and with the
    reference for the rest.

    Args:
        provider: what is checked.
        request: what is asked of it.
        context: where it runs.
        case: lengths of the requests in the batch.
        score_scale: factor on queries; a large one makes the softmax sharp.
        placement: how queries, keys and values lie in memory.

    Raises:
        AssertionError: the result is wrong, or memory was changed that must not be.
    """
    if not is_served(provider, request):
        return False
    inputs, exact, plain, plain_cache = expected(request, case, score_scale)
    for impl, layout, what in _ways(provider, request, context):
        what = f"{provider.name}, {what}, {case.name}"
        canonical = inputs.canonical
        for each in ("once", "again"):  # a second run finds its own tokens in the cache
            placed = PlacedTensors(inputs, placement, context.torch_device)
            kv = GuardedKv(layout, request.kv, canonical, context.torch_device)
            batch = on_device(
                inputs.batch, context.torch_device, first_page=0, page_size=request.kv.page_size
            )
            plan = impl.plan(batch, layout)
            out = attend(impl, request, placed, kv.tensor, plan)
            assert_close(out.cpu(), plain, exact, f"{what}, {each}")
            placed.check(what)
            kv.check(what)
            canonical = kv.canonical()
            assert_same_cache(canonical, plain_cache, what)
    return True


def _ways(
    provider: AttentionProvider, request: AttentionRequest, context: BuildContext
) -> Iterator[tuple[AttentionImpl, KvLayout, str]]:
    """The implementation on each of its layouts, then with the reference beside it."""
    impl = provider.build(request, context)
    for layout in impl.layouts():
        yield impl, layout, f"layout {layout.name}"
    verdict = provider.assess(request)
    rest = PlainAttention(request)
    if isinstance(verdict, Yes) and verdict.part is not Part.ALL and common_layouts(impl, rest):
        parted = parted_attention(impl, rest)
        yield parted, parted.layouts()[0], "the reference for the rest"


def check_far_pages(
    provider: AttentionProvider, request: AttentionRequest, context: BuildContext
) -> bool:
    """As `check_attention`, in a cache whose used pages lie 2^31 elements and more from its start.

    Raises:
        AssertionError: the result is wrong.
        Skipped: the device has too little memory for such a cache.
    """
    if not is_served(provider, request):
        return False
    spec, device = request.kv, context.torch_device
    case = AttentionCase("far pages", (1, 1, 20), (40, spec.page_size, 50))
    inputs, exact, plain, plain_cache = expected(request, case, 1.0)
    impl = provider.build(request, context)
    num_pages = inputs.canonical.shape[0]
    for layout in impl.layouts():
        what = f"{provider.name}, layout {layout.name}, {case.name}"
        page_elements = layout.page_bytes(spec) // spec.dtype.size_bytes
        first = -(-_FAR // page_elements)
        size_bytes = (first + num_pages) * layout.page_bytes(spec)
        free_bytes = context.platform.memory().free_bytes
        if size_bytes > 0.8 * free_bytes:
            raise Skipped(f"needs {size_bytes >> 20} MiB, {free_bytes >> 20} MiB are free")
        # Not filled: where memory comes on first touch, only the used pages take any.
        shape = layout.shape(spec, first + num_pages)
        kv = torch.empty(shape, dtype=TORCH_DTYPES[spec.dtype], device=device)
        page_ids = torch.arange(first, first + num_pages, device=device)
        layout.from_canonical(inputs.canonical.to(device), kv, page_ids, spec)
        batch = on_device(inputs.batch, device, first_page=first, page_size=spec.page_size)
        placed = PlacedTensors(inputs, Placement.STACKED, device)
        out = impl.run(placed.q, placed.k, placed.v, kv, impl.plan(batch, layout))
        assert_close(out.cpu(), plain, exact, what)
        assert_same_cache(layout.to_canonical(kv, page_ids, spec).cpu(), plain_cache, what)
    return True


def check_layout(layout: KvLayout, spec: KvSpec, device: torch.device) -> None:
    """Check that pages survive the way to a layout and back, and that others stay untouched.

    Raises:
        AssertionError: they do not.
    """
    num_pages, dtype = 7, cache_dtype(spec)
    what = f"layout {layout.name}"
    buffer = GuardedBuffer(layout.shape(spec, num_pages), dtype, device)
    kv = buffer.tensor
    assert kv.numel() * kv.itemsize == num_pages * layout.page_bytes(spec), (
        f"{what}: page_bytes and shape disagree"
    )
    kv.zero_()
    page_ids = torch.tensor([5, 0, 3], device=device)
    one_page = (spec.num_planes, spec.page_size, spec.num_kv_heads, spec.row_width)
    drawn = torch.randn(3, *one_page) if spec.coding is None else torch.randint(256, (3, *one_page))
    canonical = drawn.to(dtype).to(device)
    layout.from_canonical(canonical, kv, page_ids, spec)
    back = layout.to_canonical(kv, page_ids, spec)
    assert back.is_contiguous(), f"{what}: the canonical copy is not contiguous"
    assert torch.equal(back, canonical), f"{what}: pages changed on the way"
    others = layout.to_canonical(kv, torch.tensor([1, 2, 4, 6], device=device), spec)
    assert not others.any(), f"{what}: other pages were written"
    buffer.check(what)


class GuardedKv:
    """One layer's pages in a layout, between guards; NaN wherever no token was written.

    Attributes:
        tensor: as the layout says.
    """

    def __init__(
        self, layout: KvLayout, spec: KvSpec, canonical: Tensor, device: torch.device
    ) -> None:
        self._layout, self._spec = layout, spec
        self._page_ids = torch.arange(canonical.shape[0], device=device)
        shape = layout.shape(spec, canonical.shape[0])
        self._buffer = GuardedBuffer(shape, canonical.dtype, device)
        self.tensor = self._buffer.tensor
        layout.from_canonical(canonical.to(device), self.tensor, self._page_ids, spec)

    def canonical(self) -> Tensor:
        """All pages in the canonical layout, in main memory."""
        return self._layout.to_canonical(self.tensor, self._page_ids, self._spec).cpu()

    def check(self, what: str) -> None:
        """Look at the guards."""
        self._buffer.check(f"{what}: cache")


def assert_same_cache(cache: Tensor, expected_cache: Tensor, what: str) -> None:
    """Check that the cache holds the new tokens, and nothing else that is new.

    Raises:
        AssertionError: it does not.
    """
    stray = cache.isnan() != expected_cache.isnan()
    assert not stray.any(), f"{what}: stray writes in pages {_pages(stray)}"
    wrong = cache.nan_to_num() != expected_cache.nan_to_num()
    assert not wrong.any(), f"{what}: the cache differs in pages {_pages(wrong)}"


def _pages(where: Tensor) -> list[int]:
    return where.flatten(1).any(dim=1).nonzero().flatten().tolist()


@lru_cache(maxsize=16)
def expected(
    request: AttentionRequest, case: AttentionCase, score_scale: float
) -> tuple[Inputs, Tensor, Tensor, Tensor]:
    """Inputs, the exact output, the reference's output in the request's type, and its cache."""
    inputs = make_inputs(request, case, score_scale)
    exact, _ = run_reference(request, inputs.widened())
    plain, cache = run_reference(request, inputs)
    return inputs, exact, plain, cache


def run_reference(request: AttentionRequest, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output of the reference, and the cache after it, in the type of the inputs."""
    plain: AttentionImpl = PlainAttention(request)
    cache = inputs.canonical.clone()
    plan = plain.plan(inputs.batch, CanonicalLayout())
    return attend(plain, request, inputs, cache, plan), cache
