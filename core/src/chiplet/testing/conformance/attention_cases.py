"""Every attention case: shapes x types x windows x lengths, and the harder conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from chiplet.api import AttentionRequest, Dtype, KvCoding, KvSpec
from chiplet.testing.conformance.attention import (
    check_attention,
    check_far_pages,
    check_layout,
    lengths_to_try,
)
from chiplet.testing.conformance.attention_captures import check_capture
from chiplet.testing.conformance.attention_inputs import AttentionCase
from chiplet.testing.conformance.attention_prefixes import prefix_cases
from chiplet.testing.conformance.attention_properties import PROPERTIES, Property
from chiplet.testing.conformance.attention_trees import check_tree_paths, tree_cases
from chiplet.testing.conformance.case import Case, Subject, require_served
from chiplet.testing.conformance.guards import Placement

SHARP, HUGE = 30.0, 1000.0
"""Factors on queries: a softmax of few large weights, and one whose scores overflow float16."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads and pages."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int

    def __str__(self) -> str:
        return f"{self.num_heads}/{self.num_kv_heads}x{self.head_dim}p{self.page_size}"


SHAPES = (
    Shape(6, 2, 32, 16),
    Shape(1, 1, 16, 16),
    Shape(4, 4, 16, 1),
    Shape(8, 1, 64, 16),
    Shape(9, 3, 64, 64),
    Shape(16, 2, 64, 32),
    Shape(4, 2, 128, 16),
    Shape(2, 2, 80, 16),
    Shape(4, 1, 96, 128),
    Shape(2, 1, 256, 16),
    Shape(5, 5, 64, 8),
)
"""Heads without sharing, with, with one for all; powers of two, and others that models have."""

WINDOWS = (None, 1, 20, 64)


def attention_request(
    shape: Shape, dtype: Dtype, *, window: int | None = None, kv_dtype: Dtype | None = None
) -> AttentionRequest:
    """A request for layers of a shape."""
    return AttentionRequest(
        group="global" if window is None else "window",
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        scale=0.2,
        dtype=dtype,
        kv=KvSpec(
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            page_size=shape.page_size,
            dtype=kv_dtype or dtype,
        ),
        window=window,
    )


def attention_cases() -> Iterator[Case]:
    """All cases, the same ones in the same order each time."""
    main = SHAPES[0]
    yield from _plain_cases(main)
    yield from _hard_cases(main)
    yield from _feature_cases(main)
    yield from _prefix_cases()
    yield from _tree_cases(main)
    yield from _capture_cases(main)
    yield from _latent_cases()
    for shape, dtype in product(SHAPES, Dtype):
        yield _layout_case(attention_request(shape, dtype), str(shape))
    for shape, coding in product(SHAPES, KvCoding):
        request = attention_request(shape, Dtype.BFLOAT16)
        request = replace(request, kv=replace(request.kv, coding=coding))
        yield _layout_case(request, f"{shape} {coding}")
    for dtype in Dtype:
        yield _far_case(main, dtype)
        for name, holds in PROPERTIES.items():
            yield _property_case(main, dtype, name, holds)


def _plain_cases(main: Shape) -> Iterator[Case]:
    """Every shape, type and window at every length."""
    for shape, dtype, window in product(SHAPES, Dtype, WINDOWS):
        for index, case in enumerate(_lengths(shape)):
            # A cheap case of each shape, and all lengths of the first one.
            is_quick = index in (2, 8) if shape != main else dtype is not Dtype.FLOAT16
            is_quick = is_quick and window in (None, 20)
            request = attention_request(shape, dtype, window=window)
            yield _case(shape, request, case, is_quick=is_quick)


def _hard_cases(main: Shape) -> Iterator[Case]:
    """Sharp and huge scores, and inputs that lie otherwise."""
    for dtype, window, case in product(Dtype, (None, 20), _lengths(main)[:-1]):
        request = attention_request(main, dtype, window=window)
        for scale in (SHARP, HUGE):
            is_quick = case.name in ("mixed", "decode around a page")
            yield _case(main, request, case, scale=scale, is_quick=is_quick)
        for placement in Placement:
            if placement is not Placement.STACKED:
                is_quick = case.name == "mixed" and dtype is not Dtype.FLOAT16
                yield _case(main, request, case, placement=placement, is_quick=is_quick)


def _feature_cases(main: Shape) -> Iterator[Case]:
    """Caches of other types, and what only some models have."""
    for dtype, kv_dtype, case in product(Dtype, Dtype, _lengths(main)[:-1]):
        if dtype is not kv_dtype:
            request = attention_request(main, dtype, kv_dtype=kv_dtype)
            yield _case(main, request, case, is_quick=case.name == "mixed")
    for dtype, case in product(Dtype, _lengths(main)[:-1:2]):
        for request in _beyond_plain(attention_request(main, dtype)):
            for scale in (1.0, SHARP):
                is_quick = case.name == "mixed" and scale == SHARP
                yield _case(main, request, case, scale=scale, is_quick=is_quick)


def _prefix_cases() -> Iterator[Case]:
    """Decodes with prefixes in common, of heads that share keys in several ways."""
    for shape, dtype in product((SHAPES[0], SHAPES[3], SHAPES[9]), Dtype):
        for case in prefix_cases(shape.page_size):
            is_quick = shape == SHAPES[0] and dtype is not Dtype.FLOAT16
            plain = attention_request(shape, dtype)
            yield _case(shape, plain, case, is_quick=is_quick)
            if shape == SHAPES[0] and dtype is Dtype.BFLOAT16:
                for request in (replace(plain, window=64, group="window"), *_beyond_plain(plain)):
                    yield _case(shape, request, case, is_quick=False)


def _beyond_plain(request: AttentionRequest) -> Iterator[AttentionRequest]:
    """The request with each feature that a model or a user may ask for, and with many."""
    yield replace(request, softcap=2.5)
    yield replace(request, has_sinks=True)
    for coding in KvCoding:
        coded = replace(request, kv=replace(request.kv, coding=coding))
        yield coded
        yield replace(coded, softcap=20.0, has_sinks=True, window=20, group="window")


def _tree_cases(main: Shape) -> Iterator[Case]:
    """Trees, with windows and with all else that there may be."""
    grouped = SHAPES[4]
    for shape, dtype, window in product((main, grouped), Dtype, (None, 1, 20)):
        request = replace(attention_request(shape, dtype, window=window), has_tree=True)
        for case in tree_cases(shape.page_size):
            is_quick = shape == main and dtype is not Dtype.FLOAT16 and window != 1
            yield _case(shape, request, case, is_quick=is_quick)
    for dtype in Dtype:
        tree = replace(attention_request(main, dtype), has_tree=True)
        for request in _beyond_plain(tree):
            for case in tree_cases(main.page_size)[1:4]:
                is_quick = case.name == "trees among others" and dtype is Dtype.BFLOAT16
                yield _case(main, request, case, is_quick=is_quick)
        for window in (None, 20):
            yield _paths_case(main, dtype, window)


def _capture_cases(main: Shape) -> Iterator[Case]:
    """Captured tokens: few, and more than many tokens see."""
    lengths = [each for each in _lengths(main) if each.name in ("mixed", "one long among short")]
    for shape, dtype, window in product((main, SHAPES[4]), Dtype, (None, 20)):
        request = replace(attention_request(shape, dtype, window=window), num_captured=5)
        for case in lengths:
            is_quick = shape == main and dtype is not Dtype.FLOAT16
            yield _capture_case(shape, request, case, is_quick=is_quick)
    trees = tree_cases(main.page_size)[3]
    for dtype in Dtype:
        request = replace(attention_request(main, dtype), num_captured=16, has_tree=True)
        for each in (request, *_beyond_plain(request)):
            is_quick = dtype is Dtype.BFLOAT16
            yield _capture_case(main, each, trees, is_quick=is_quick)


def _capture_case(
    shape: Shape, request: AttentionRequest, lengths: AttentionCase, *, is_quick: bool
) -> Case:
    def check(subject: Subject) -> None:
        require_served(subject, request)
        check_capture(subject.provider, request, subject.context, lengths)

    return Case(
        family="attention",
        operation="attention",
        dtype=str(request.dtype),
        feature="capture" + in_words(request).partition(str(request.dtype))[2],
        name=f"{shape} {lengths.name}",
        request=in_words(request),
        asked=request,
        is_quick=is_quick,
        check=check,
    )


def _latent_cases() -> Iterator[Case]:
    """Values that are parts of keys: one key for all heads, also as wide as models have it."""
    small, wide = Shape(6, 1, 48, 16), Shape(16, 1, 576, 64)
    for shape, dtype, window in product((small, wide), Dtype, (None, 20)):
        plain = attention_request(shape, dtype, window=window)
        request = replace(plain, kv=replace(plain.kv, value_dim=shape.head_dim // 9 * 8 or 1))
        lengths = [each for each in _lengths(shape) if each.name in ("mixed", "chunks with prefix")]
        for case in lengths:
            is_quick = shape == small and dtype is not Dtype.FLOAT16
            yield _case(shape, request, case, is_quick=is_quick)
    for dtype in Dtype:
        plain = attention_request(small, dtype)
        latent = replace(plain, has_tree=True, kv=replace(plain.kv, value_dim=32))
        yield _layout_case(latent, f"{small} of keys alone")
        for request in _beyond_plain(latent):
            is_quick = dtype is Dtype.BFLOAT16
            yield _case(small, request, tree_cases(small.page_size)[3], is_quick=is_quick)


def _paths_case(shape: Shape, dtype: Dtype, window: int | None) -> Case:
    request = replace(attention_request(shape, dtype, window=window), has_tree=True)

    def check(subject: Subject) -> None:
        require_served(subject, request)
        for case in tree_cases(shape.page_size)[:4]:
            check_tree_paths(subject.provider, request, subject.context, case)

    return Case(
        family="attention",
        operation="attention",
        dtype=str(dtype),
        feature="tree as its paths" + (f", window {window}" if window is not None else ""),
        name=str(shape),
        is_quick=dtype is Dtype.FLOAT32,
        check=check,
    )


def _lengths(shape: Shape) -> Sequence[AttentionCase]:
    page = shape.page_size
    more = (
        AttentionCase("decode at page ends", (1,) * 4, (page, 2 * page, 3 * page, page)),
        AttentionCase("two tokens", (2, 2), (2, page + 2)),
        AttentionCase("shared first pages", (1, 1, 7), (2 * page + 3, 3 * page, 2 * page + 9), 2),
        AttentionCase("one long among short", (1, 1, 1), (2, 12 * page + 1, 1)),
        AttentionCase("new tokens over many pages", (3 * page + 1,), (3 * page + 2,)),
        AttentionCase("many short prompts", (2, 3, 4, 5, 6, 7), (2, 3, 4, 5, 6, 7)),
        AttentionCase("many decodes", (1,) * 33, tuple(range(5, 38))),
    )
    usual = lengths_to_try(page)
    if page > 64:  # lengths count pages: the largest would only take long
        more = tuple(each for each in more if "many pages" not in each.name)
    return (*usual[:9], *more, usual[9]) if shape == SHAPES[0] else (*usual[:9], *more)


def _case(
    shape: Shape,
    request: AttentionRequest,
    lengths: AttentionCase,
    *,
    scale: float = 1.0,
    placement: Placement = Placement.STACKED,
    is_quick: bool,
) -> Case:
    def check(subject: Subject) -> None:
        require_served(subject, request)
        check_attention(
            subject.provider,
            request,
            subject.context,
            lengths,
            score_scale=scale,
            placement=placement,
        )

    features = [
        f"window {request.window}" if request.window is not None else "",
        f"{request.kv.coding or request.kv.dtype} cache" if _has_other_cache(request) else "",
        f"softcap {request.softcap:g}" if request.softcap is not None else "",
        "sinks" if request.has_sinks else "",
        "trees" if request.has_tree else "",
        "values in keys" if request.kv.value_dim is not None else "",
        {SHARP: "sharp scores", HUGE: "huge scores"}.get(scale, ""),
        f"{placement} inputs" if placement is not Placement.STACKED else "",
    ]
    return Case(
        family="attention",
        operation="attention",
        dtype=str(request.dtype),
        feature=", ".join(each for each in features if each) or "plain",
        name=f"{shape} {lengths.name}",
        request=in_words(request),
        asked=request,
        is_quick=is_quick,
        check=check,
    )


def _far_case(shape: Shape, dtype: Dtype) -> Case:
    request = attention_request(shape, dtype)

    def check(subject: Subject) -> None:
        require_served(subject, request)
        check_far_pages(subject.provider, request, subject.context)

    return Case(
        family="attention",
        operation="attention",
        dtype=str(dtype),
        feature="offsets above 2^31",
        name=str(shape),
        request=in_words(request),
        asked=request,
        is_quick=dtype is Dtype.BFLOAT16,
        check=check,
    )


def _layout_case(request: AttentionRequest, name: str) -> Case:
    def check(subject: Subject) -> None:
        require_served(subject, request)
        layouts = subject.provider.build(request, subject.context).layouts()
        assert layouts, f"{subject.name}: no layout at all"
        for layout in layouts:
            check_layout(layout, request.kv, subject.context.torch_device)

    return Case(
        family="attention",
        operation="attention",
        dtype=str(request.dtype),
        feature="to and from the canonical layout",
        name=name,
        request=in_words(request),
        asked=request,
        is_quick=True,
        check=check,
    )


def _property_case(shape: Shape, dtype: Dtype, name: str, holds: Property) -> Case:
    def check(subject: Subject) -> None:
        build: Callable[..., AttentionRequest] = partial(attention_request, shape, dtype)
        for window in (None, 20):
            request = build(window=window)
            require_served(subject, request)
            holds(subject.provider, request, subject.context)

    return Case(
        family="attention",
        operation="attention",
        dtype=str(dtype),
        feature=name,
        name=str(shape),
        is_quick=dtype is Dtype.FLOAT32,
        check=check,
    )


def in_words(request: AttentionRequest) -> str:
    """The request in a few words, as the support snapshot has it."""
    window = f", window {request.window}" if request.window is not None else ""
    cache = f", {request.kv.coding or request.kv.dtype} cache" if _has_other_cache(request) else ""
    softcap = f", softcap {request.softcap:g}" if request.softcap is not None else ""
    sinks = ", sinks" if request.has_sinks else ""
    rest = f"{cache}{window}{softcap}{sinks}{', trees' if request.has_tree else ''}"
    heads = f"{request.num_heads}/{request.num_kv_heads}x{request.head_dim}"
    rest += f", values of {request.kv.value_dim}" if request.kv.value_dim is not None else ""
    rest += f", {request.num_captured} captured" if request.num_captured else ""
    return f"attention {heads}, pages of {request.kv.page_size}, {request.dtype}{rest}"


def _has_other_cache(request: AttentionRequest) -> bool:
    return request.kv.coding is not None or request.kv.dtype != request.dtype
