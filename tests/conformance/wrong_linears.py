"""Linear providers that are wrong in one way each, for the kit to catch."""

from __future__ import annotations

from dataclasses import replace

import torch

from chiplet.api import Activations, Coding, Granularity
from chiplet.reference.linear import DequantizingLinear, PlainLinear, ReferenceLinear
from tests.conformance.wrong_providers import Wrong


class NoBias(PlainLinear):
    def pack(self, weights):
        return replace(weights, bias=None)


class NarrowSum(PlainLinear):
    def run(self, x, packed):
        bias = None if packed.bias is None else packed.bias.bfloat16()
        narrow = replace(packed, weight=packed.weight.bfloat16(), bias=bias)
        return super().run(x.bfloat16(), narrow).to(x.dtype)


class LastRowMissing(PlainLinear):
    """A tile of 8 rows whose tail is forgotten."""

    def run(self, x, packed):
        out = super().run(x, packed)
        out[len(out) // 8 * 8 :] = 0
        return out


class MutatesInput(PlainLinear):
    def run(self, x, packed):
        out = super().run(x, packed)
        x.zero_()
        return out


class WriteBesideRows(PlainLinear):
    """Uses what lies behind each row as scratch memory."""

    def run(self, x, packed):
        out = super().run(x, packed)
        if x.stride(0) > x.shape[1]:
            torch.as_strided(x, (1,), (1,), x.storage_offset() + x.shape[1]).fill_(0)
        return out


class GateBehind:
    """Takes the second half for the gate."""

    def __init__(self, request):
        inner = ReferenceLinear().build(request, None)
        self.pack, self.run = inner.pack, inner.run

    def run_silu_mul(self, x, packed):
        up, gate = self.run(x, packed).chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up


class OnQuantized(DequantizingLinear):
    """Serves every scheme, on canonical tensors changed in some way."""

    def __init__(self, change):
        self.change = change

    def pack(self, weights):
        return self.change(weights)

    def run(self, x, packed):
        if packed.scheme is None:
            return torch.nn.functional.linear(x, packed.weight, packed.bias)
        return super().run(x, packed)


class SpreadsNan(OnQuantized):
    """Looks whether any number of the input is too large, and takes all rows for it."""

    def run(self, x, packed):
        out = super().run(x, packed)
        return out if x.abs().max() < 1e4 else torch.full_like(out, torch.nan)


def _without_zero_points(weights):
    if weights.zero_points is None:
        return weights
    middle = 8 if weights.scheme.coding is Coding.INT4 else 0
    return replace(weights, zero_points=torch.full_like(weights.zero_points, middle))


def _halves_swapped(weights):
    if weights.scheme is None or weights.scheme.coding is not Coding.INT4:
        return weights
    codes = weights.weight
    return replace(weights, weight=(codes << 4) | (codes >> 4))


def _first_scale_only(weights):
    is_grouped = weights.scheme is not None and weights.scheme.granularity is Granularity.GROUP
    if not is_grouped or weights.scales.dtype is not torch.float32:
        return weights
    return replace(weights, scales=weights.scales[:, :1].expand_as(weights.scales).contiguous())


def _activations_kept(weights):
    if weights.scheme is None:
        return weights
    coarse = Activations.PER_TOKEN if weights.scheme.coding is Coding.INT8 else Activations.KEPT
    return replace(weights, scheme=replace(weights.scheme, activations=coarse))


LINEAR = {
    "bias left out": Wrong(lambda request: NoBias()),
    "sums in bfloat16": Wrong(lambda request: NarrowSum()),
    "tail of a tile": Wrong(lambda request: LastRowMissing()),
    "mutates its input": Wrong(lambda request: MutatesInput(), "changes its input"),
    "a row of NaN spoils others": Wrong(
        lambda request: SpreadsNan(lambda weights: weights), "NaN in the result"
    ),
    "writes beside rows": Wrong(lambda request: WriteBesideRows(), "bytes beside"),
    "gates the other half": Wrong(GateBehind),
    "zero points left out": Wrong(lambda request: OnQuantized(_without_zero_points)),
    "halves of int4 swapped": Wrong(lambda request: OnQuantized(_halves_swapped)),
    "one scale for all groups": Wrong(lambda request: OnQuantized(_first_scale_only)),
    "quantizes inputs unasked": Wrong(lambda request: OnQuantized(_activations_kept)),
}
