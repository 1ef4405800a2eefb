"""Latent attention by Triton's interpreter, against the reference."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    DeviceProbe,
    Dtype,
    KvCoding,
    KvSpec,
    No,
)
from chiplet.testing.conformance import AttentionCase, check_attention, check_layout
from chiplet.testing.conformance.attention_trees import random_tree
from chiplet_triton.attention.paged import TritonAttentionProvider
from chiplet_triton.device import traits_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy on NaN and infinity

CONTEXT = BuildContext(SimpleNamespace(torch_device=torch.device("cpu")))


DEVICE = DeviceProbe(
    device_type="cuda",
    index=0,
    name="none",
    total_memory_bytes=1,
    facts={"cores": "4", "capability": "8.9"},
)


def provider(**traits):
    return TritonAttentionProvider(replace(traits_of(DEVICE), **traits))


def latent_request(dtype=Dtype.FLOAT32, heads=6, width=48, value_dim=40, **others):
    coding, window = others.pop("coding", None), others.get("window")
    return AttentionRequest(
        group="global" if window is None else "window",
        num_heads=heads,
        num_kv_heads=1,
        head_dim=width,
        scale=0.2,
        dtype=dtype,
        kv=KvSpec(
            num_kv_heads=1,
            head_dim=width,
            page_size=others.pop("page_size", 16),
            dtype=others.pop("kv_dtype", dtype),
            coding=coding,
            value_dim=value_dim,
        ),
        **others,
    )


MIXED = AttentionCase("mixed", (1, 1, 7, 5), (1, 129, 7, 90))
TREES = AttentionCase("trees", (1, 10, 6), (70, 30, 6), parents=((-1,), random_tree(10, 2), ()))


@pytest.mark.parametrize(
    "request_",
    [
        latent_request(),
        latent_request(Dtype.FLOAT16, window=20),
        latent_request(Dtype.FLOAT16, heads=3, width=32, value_dim=32, page_size=5),
        latent_request(Dtype.FLOAT16, heads=20, softcap=2.5, has_sinks=True),
        latent_request(Dtype.FLOAT32, kv_dtype=Dtype.FLOAT16),
        latent_request(Dtype.FLOAT16, coding=KvCoding.FP8, window=20, softcap=20.0, has_sinks=True),
    ],
    ids=["plain", "window", "all of a key", "sinks of many heads", "shorter cache", "fp8 and more"],
)
def test_values_in_keys(request_):
    assert check_attention(provider(), request_, CONTEXT, MIXED, score_scale=3.0)


@pytest.mark.parametrize("heads", [16, 70])
def test_rows_as_wide_as_models_have_them(heads):
    request = latent_request(Dtype.FLOAT16, heads, 576, 512, page_size=64)
    case = AttentionCase("both", (1, 1, 3), (40, 140, 70))
    cut = provider(reads_operands_in_place=heads > 16)
    assert check_attention(cut, request, CONTEXT, case)


@pytest.mark.parametrize("window", [None, 9])
def test_trees(window):
    request = latent_request(has_tree=True, window=window, has_sinks=True)
    assert check_attention(provider(), request, CONTEXT, TREES)


def test_pages_of_keys_alone():
    request = latent_request(Dtype.FLOAT16)
    (layout,) = provider().build(request, CONTEXT).layouts()
    check_layout(layout, request.kv, torch.device("cpu"))


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (latent_request(coding=KvCoding.INT8), "int8"),
        (latent_request(width=700, value_dim=600), "values of 600"),
        (latent_request(num_captured=2), "capture|latent"),
        (replace(latent_request(), kv=replace(latent_request().kv, num_kv_heads=2)), "2 latent"),
    ],
    ids=["int8", "wide", "captures", "two rows"],
)
def test_what_is_not_served_is_refused(request_, text):
    verdict = provider().assess(request_)
    assert isinstance(verdict, No)
    assert any(word in str(verdict) for word in text.split("|"))
