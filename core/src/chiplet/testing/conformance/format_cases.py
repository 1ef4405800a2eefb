"""Quantization formats: canonical tensors, near the weight, the same each time, whatever comes.

What a stored format means cannot be known here; its author's tests hold it against a checkpoint,
see `chiplet.testing.formats`. That it leaves other checkpoints alone is checked for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from chiplet.api import (
    ConfigError,
    LayerFacts,
    ModelError,
    QuantizationFormat,
    StoredCheckpoint,
    StoredFormat,
    StoredTensor,
    WeightScheme,
)
from chiplet.reference.canonical import fault_of
from chiplet.reference.quantization import dequantize
from chiplet.testing.conformance.case import Case, Refused, Subject
from chiplet.testing.formats import check_quantization_format

QUANTIZATION, STORED = "quantization", "stored format"

_SHAPES = ((32, 256), (1, 128), (129, 384), (64, 1024), (257, 2048))
_LARGEST_ERROR = 0.25
"""Normalised mean square error; half of the weight is as far from it as nothing is."""


def format_cases() -> Iterator[Case]:
    """All cases; a subject's target is a `QuantizationFormat` or a `StoredFormat`."""
    for rows, columns in _SHAPES:
        yield _case(
            QUANTIZATION,
            f"{columns} to {rows}",
            lambda target, n=rows, k=columns: check_quantization_format(
                target, out_features=n, in_features=k
            ),
        )
    for name, check in _QUANTIZING.items():
        yield _case(QUANTIZATION, name, check)
    for name, facts in _STRANGE.items():

        def leaves(target: StoredFormat, facts: StoredCheckpoint = facts) -> None:
            assert not target.recognizes(facts), f"{target.name} takes it for its own"

        yield _case(STORED, f"leaves {name} alone", leaves)


def _case(family: str, name: str, check: Callable[..., None]) -> Case:
    def run(subject: Subject) -> None:
        try:
            check(subject.target)
        except ConfigError as error:
            raise Refused(str(error)) from error

    return Case(family=family, operation=family, name=name, is_quick=True, check=run)


def _near(target: QuantizationFormat, weight: Tensor) -> None:
    scheme = _scheme(target, weight)
    weights = target.quantize(weight.clone(), scheme)
    fault = fault_of(weights, scheme)
    assert not fault, fault
    values = dequantize(weights)
    assert values.isfinite().all(), "a weight became a value that is no finite number"
    exact = weight.float()
    error = float((values - exact).square().mean() / exact.square().mean())
    assert error < _LARGEST_ERROR, f"normalised mean square error {error:.3f}"


def _scheme(target: QuantizationFormat, weight: Tensor) -> WeightScheme:
    n, k = weight.shape
    for role in ("down_proj", "qkv_proj"):
        layer = LayerFacts(name=f"model.layers.0.{role}", role=role, in_features=k, out_features=n)
        scheme = target.scheme(layer)
        assert scheme == target.scheme(layer), "it answers otherwise when it is asked again"
        if scheme is not None:
            return scheme
    raise AssertionError(f"{target.name} leaves qkv_proj and down_proj plain")


def _random(n: int = 48, k: int = 512) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0))


def _narrow_types(target: QuantizationFormat) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        _near(target, _random().to(dtype))


def _zeros(target: QuantizationFormat) -> None:
    weight = _random()
    weight[3] = 0
    _near(target, weight)
    values = dequantize(target.quantize(weight.clone(), _scheme(target, weight)))
    assert float(values[3].abs().max()) == 0.0, "a row of zeros became something"


def _extremes(target: QuantizationFormat) -> None:
    for factor in (1e-6, 1e4):
        _near(target, _random() * factor)
    weight = _random()
    weight[5] *= 300
    _near(target, weight)


def _views(target: QuantizationFormat) -> None:
    weight = _random(48, 1024)[:, ::2]
    scheme = _scheme(target, weight)
    strided, whole = target.quantize(weight, scheme), target.quantize(weight.contiguous(), scheme)
    assert torch.equal(dequantize(strided), dequantize(whole)), "a view becomes other numbers"


def _repeatable(target: QuantizationFormat) -> None:
    weight = _random()
    scheme = _scheme(target, weight)
    first, second = (dequantize(target.quantize(weight.clone(), scheme)) for _ in range(2))
    assert torch.equal(first, second), "the same weight becomes other numbers"


def _not_finite(target: QuantizationFormat) -> None:
    for value in (torch.nan, torch.inf):
        weight = _random()
        weight[2, 7] = value
        try:
            target.quantize(weight, _scheme(target, weight))
        except ModelError:
            continue
        raise AssertionError(f"a weight that holds {value} is taken; it must raise a ModelError")


_QUANTIZING: Mapping[str, Callable[[QuantizationFormat], None]] = {
    "narrow types": _narrow_types,
    "a row of zeros": _zeros,
    "small, large and mixed": _extremes,
    "views": _views,
    "the same twice": _repeatable,
    "NaN and infinity": _not_finite,
}

_PLAIN = {"model.layers.0.self_attn.q_proj.weight": StoredTensor((64, 64), "BF16")}
_STRANGE = {
    "a plain checkpoint": StoredCheckpoint(quantization={}, tensors=_PLAIN),
    "an empty checkpoint": StoredCheckpoint(quantization={}, tensors={}),
    "a checkpoint of nobody's": StoredCheckpoint(
        quantization={"quant_method": "of-nobody", "bits": 3}, tensors=_PLAIN
    ),
}
