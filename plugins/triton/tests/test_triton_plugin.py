"""What the plugin offers, and to whom."""

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chiplet.api import (
    Activations,
    AttentionRequest,
    Coding,
    DeviceProbe,
    Dtype,
    Feature,
    Granularity,
    KvCoding,
    KvSpec,
    LinearRequest,
    LinearWeights,
    No,
    Op,
    OpRequest,
    WeightScheme,
    Yes,
)
from chiplet_triton import plugin
from chiplet_triton.device import traits_of


def device(device_type="cuda", **facts):
    return DeviceProbe(
        device_type=device_type, index=0, name="A GPU", total_memory_bytes=1, facts=facts
    )


def test_it_is_asked_about_gpus_only():
    path = Path(plugin.__file__).parent / "chiplet_plugin.toml"
    manifest = tomllib.loads(path.read_text("utf-8"))
    assert manifest["kind"] == "provider"
    assert manifest["device_types"] == ["cuda", "rocm"]


def test_hooks_import_no_torch_until_they_are_called():
    code = "import sys; from chiplet_triton import plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_traits_come_from_the_probe():
    assert traits_of(device(capability="9.0", cores="132")).can_overlap
    assert traits_of(device(capability="9.0", cores="132")).num_cores == 132
    assert not traits_of(device(capability="8.0")).can_overlap
    assert not traits_of(device("rocm", capability="9.4")).can_overlap
    assert traits_of(device("rocm")).shared_bytes == 65536


def test_refusals_carry_a_reason():
    (ops,) = plugin.ops(device=device())
    assert isinstance(ops.assess(OpRequest(op=Op.TOP_LOGPROBS, dtype=Dtype.FLOAT32)), No)
    (attention,) = plugin.attention(device=device())
    spec = KvSpec(num_kv_heads=1, head_dim=512, page_size=16, dtype=Dtype.FLOAT16)
    request = AttentionRequest(
        group="global",
        num_heads=1,
        num_kv_heads=1,
        head_dim=512,
        scale=1.0,
        dtype=Dtype.FLOAT16,
        kv=spec,
    )
    assert "512" in attention.assess(request).reasons[0].text
    spec = KvSpec(
        num_kv_heads=1, head_dim=64, page_size=16, dtype=Dtype.FLOAT16, coding=KvCoding.FP8
    )
    request = replace(request, head_dim=64, kv=spec)
    (attention,) = plugin.attention(device=device(capability="9.0"))
    assert isinstance(attention.assess(request), Yes)
    (older,) = plugin.attention(device=device(capability="8.0"))
    assert "E4M3" in older.assess(request).reasons[0].text


def test_int8_needs_pages_of_whole_words_and_captures_have_a_limit():
    (attention,) = plugin.attention(device=device(capability="8.0"))
    spec = KvSpec(
        num_kv_heads=1, head_dim=7, page_size=3, dtype=Dtype.FLOAT16, coding=KvCoding.INT8
    )
    request = AttentionRequest(
        group="global",
        num_heads=1,
        num_kv_heads=1,
        head_dim=7,
        scale=1.0,
        dtype=Dtype.FLOAT16,
        kv=spec,
    )
    assert "21 keys" in attention.assess(request).reasons[0].text
    request = replace(request, kv=replace(spec, page_size=4))
    assert isinstance(attention.assess(request), Yes)
    assert isinstance(attention.assess(replace(request, num_captured=32)), Yes)
    assert "33 tokens" in attention.assess(replace(request, num_captured=33)).reasons[0].text


FP8 = {"coding": Coding.FP8_E4M3, "granularity": Granularity.CHANNEL}
BLOCKS = {"coding": Coding.FP8_E4M3, "granularity": Granularity.BLOCK, "group_size": 128}
INT8 = {"coding": Coding.INT8, "granularity": Granularity.CHANNEL}
INT4 = {"coding": Coding.INT4, "granularity": Granularity.GROUP, "has_zero_points": True}
MXFP4 = {"coding": Coding.MXFP4, "granularity": Granularity.GROUP, "group_size": 32}
NVFP4 = {"coding": Coding.NVFP4, "granularity": Granularity.GROUP, "group_size": 16}
PER_TOKEN = {"activations": Activations.PER_TOKEN}
STATIC = {"activations": Activations.STATIC}
PER_GROUP = {"activations": Activations.PER_TOKEN_GROUP}


def assess(scheme, in_features=256, capability="9.0"):
    linear, _ = plugin.linear(device=device(capability=capability))
    request = LinearRequest(
        role="x",
        in_features=in_features,
        out_features=64,
        dtype=Dtype.BFLOAT16,
        scheme=WeightScheme(**scheme),
    )
    return linear.assess(request)


SERVED = [
    INT8,
    INT8 | PER_TOKEN,
    INT8 | STATIC,
    INT8 | {"granularity": Granularity.TENSOR},
    FP8,
    FP8 | PER_TOKEN,
    FP8 | STATIC | {"granularity": Granularity.TENSOR},
    BLOCKS,
    BLOCKS | PER_GROUP,
    INT4 | {"group_size": 128},
    INT4 | {"group_size": 32},
    MXFP4,
    NVFP4,
]


@pytest.mark.parametrize("scheme", SERVED)
def test_weights_of_eight_and_four_bits_are_served(scheme):
    assert isinstance(assess(scheme), Yes)


@pytest.mark.parametrize("scheme", [INT8 | PER_TOKEN, INT4 | {"group_size": 128}, MXFP4, NVFP4])
def test_what_has_no_e4m3_in_its_products_is_served_everywhere(scheme):
    assert isinstance(assess(scheme, capability="8.0"), Yes)


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (assess(FP8, capability="8.0"), "E4M3"),
        (assess(FP8, in_features=40), "40 inputs; served: multiples of 16"),
        (assess(MXFP4, in_features=80), "80 inputs; served: multiples of 32"),
        (assess(NVFP4, in_features=48), "48 inputs; served: multiples of 32"),
        (assess(INT4 | {"group_size": 16}), "groups of 16"),
        (assess(BLOCKS | {"group_size": 64}), "blocks of 64"),
        (assess(BLOCKS | PER_TOKEN), "activations per_token"),
        (assess(NVFP4 | PER_TOKEN), "activations per_token"),
        (assess(INT8 | PER_TOKEN, in_features=1 << 17), "131072 inputs that are quantized"),
        (assess(INT8 | {"has_zero_points": True}), "zero points"),
        (assess(INT8 | {"granularity": Granularity.GROUP, "group_size": 64}), "groups of 64"),
    ],
)
def test_other_schemes_are_refused_with_a_reason(verdict, reason):
    assert reason in verdict.reasons[0].text


@pytest.mark.parametrize(("out_features", "most"), [(4096, 32), (28672, 64)])
def test_many_rows_of_plain_weights_are_left_to_torch_or_a_vendor(out_features, most):
    few, many = plugin.linear(device=device())
    request = LinearRequest(
        role="x", in_features=4096, out_features=out_features, dtype=Dtype.BFLOAT16
    )
    assert few.assess(request).max_tokens == most
    assert many.assess(request).max_tokens is None
    assert few.assess(request).score > many.assess(request).score
    assert many.accepts == {Feature.BIAS}
    x, weight = torch.randn(5, 16), torch.randn(7, 16)
    impl = many.build(request, None)
    made = impl.run(x, impl.pack(LinearWeights(scheme=None, weight=weight)))
    torch.testing.assert_close(made, x @ weight.T)
