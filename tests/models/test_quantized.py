"""Models quantized while loading: logits against Transformers on quantized linear layers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from chiplet import LLM, SamplingParams
from chiplet.config import EngineConfig
from chiplet.errors import ConfigError
from chiplet.worker import explain
from tests.models.tiny import make_checkpoint, run_engine

SAMPLING = SamplingParams(
    temperature=0, max_tokens=4, ignore_eos=True, logprobs=32, prompt_logprobs=32
)
PROMPT = np.random.default_rng(5).integers(2, 32, 40).tolist()


def int8_layer(layer: torch.nn.Linear) -> None:
    """Round weights per output feature, and the input per token."""

    def round_to(values: torch.Tensor) -> torch.Tensor:
        scale = values.abs().amax(-1, keepdim=True) / 127
        return (values / scale).round() * scale

    layer.weight.copy_(round_to(layer.weight))
    layer.register_forward_pre_hook(lambda _, inputs: (round_to(inputs[0]),))


def int4_layer(layer: torch.nn.Linear) -> None:
    """Round weights in groups to 16 levels, one of which is zero."""
    size = next(size for size in (128, 64, 32, 16) if layer.in_features % size == 0)
    groups = layer.weight.reshape(layer.out_features, -1, size)
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    high = groups.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    codes = ((groups / scale).round() + zero).clamp(0, 15)
    layer.weight.copy_(((codes - zero) * scale).flatten(1))


def fp8_layer(layer: torch.nn.Linear) -> None:
    """Round weights per output feature to three bits of mantissa."""
    scale = layer.weight.abs().amax(1, keepdim=True) / 448
    layer.weight.copy_((layer.weight / scale).to(torch.float8_e4m3fn).float() * scale)


@torch.no_grad()
def expected(model: torch.nn.Module, token_ids: list[int]) -> np.ndarray:
    logits = model(torch.tensor([token_ids])).logits[0]
    return torch.log_softmax(logits.double(), dim=-1).numpy()


# Where an activation lies on a rounding edge, it may fall on the other side in another engine.
@pytest.mark.parametrize(
    ("name", "quantize", "tolerance"),
    [("int8", int8_layer, 0.05), ("fp8", fp8_layer, 5e-4), ("int4", int4_layer, 5e-4)],
)
@pytest.mark.parametrize("kind", ["llama-tied", "llama-untied", "llama-bias", "qwen3"])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_logits_are_those_of_quantized_weights(
    tmp_path: Path, kind: str, device: str, name: str, quantize, tolerance: float
) -> None:
    model = make_checkpoint(kind, tmp_path)
    config = EngineConfig.from_options(
        model=str(tmp_path),
        device=device,
        dtype="float32",
        max_total_tokens=512,
        chunked_prefill_size=16,
        quantization=name,
        # Of int4, the products that serve by default round activations, which the scheme keeps.
        deny=("linear=native-int8",) if (device, name) == ("cpu", "int4") else (),
    )
    got = run_engine(config, [PROMPT], [SAMPLING])[0]
    plain = expected(model, PROMPT + got.token_ids)
    with torch.no_grad():
        for path, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and path != "lm_head":
                quantize(layer)
    quantized = expected(model, PROMPT + got.token_ids)
    np.testing.assert_allclose(got.prompt_logprobs, quantized[: len(PROMPT) - 1], atol=tolerance)
    np.testing.assert_allclose(got.logprobs, quantized[len(PROMPT) - 1 : -1], atol=tolerance)
    rounding = np.abs(plain - quantized).mean()
    distance = np.abs(got.prompt_logprobs - quantized[: len(PROMPT) - 1]).mean()
    assert distance < rounding / 4


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama-tied", "llama-untied"])
@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("layers", ["none", "fp8"])
def test_the_head_is_quantized_on_request(
    tmp_path: Path, kind: str, device: str, layers: str
) -> None:
    model = make_checkpoint(kind, tmp_path)
    config = EngineConfig.from_options(
        model=str(tmp_path),
        device=device,
        dtype="float32",
        max_total_tokens=512,
        quantization=layers,
        head_quantization="fp8",
    )
    got = run_engine(config, [PROMPT], [SAMPLING])[0]
    plain = expected(model, PROMPT + got.token_ids)
    for path, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and (path == "lm_head" or layers == "fp8"):
            fp8_layer(layer)  # of a tied head, the embedding is the same tensor
    quantized = expected(model, PROMPT + got.token_ids)
    np.testing.assert_allclose(got.prompt_logprobs, quantized[: len(PROMPT) - 1], atol=5e-4)
    distance = np.abs(got.prompt_logprobs - quantized[: len(PROMPT) - 1]).mean()
    assert distance < np.abs(plain - quantized).mean() / 4


def test_explain_names_the_scheme_of_each_layer(tmp_path: Path) -> None:
    make_checkpoint("llama-tied", tmp_path)
    plan = explain(EngineConfig.from_options(model=str(tmp_path), quantization="int4")).to_json()
    text = str(plan)
    assert "int4 groups of 16 with zero points" in text
    assert "int4 groups of 32 with zero points" in text


@torch.no_grad()
def test_experts_are_quantized_too(tmp_path: Path) -> None:
    model = make_checkpoint("mixtral", tmp_path)
    options = {"model": str(tmp_path), "device": "reference", "dtype": "float32"}
    config = EngineConfig.from_options(quantization="fp8", max_total_tokens=512, **options)
    got = run_engine(config, [PROMPT], [SAMPLING])[0]
    rounded = 0
    for name, weight in model.named_parameters():
        is_linear = weight.ndim > 1 and ("attn" in name or "experts" in name)
        if is_linear:
            scale = weight.abs().amax(-1, keepdim=True) / 448
            weight.copy_((weight / scale).to(torch.float8_e4m3fn).float() * scale)
            rounded += "experts" in name
    assert rounded
    quantized = expected(model, PROMPT + got.token_ids)
    np.testing.assert_allclose(got.prompt_logprobs, quantized[: len(PROMPT) - 1], atol=5e-4)


def test_experts_of_two_schemes_are_refused(tmp_path: Path) -> None:
    make_checkpoint("mixtral", tmp_path)
    config = EngineConfig.from_options(model=str(tmp_path), quantization="int4")
    with pytest.raises(ConfigError, match="both must have the same"):
        explain(config)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    make_checkpoint("llama-tied", tmp_path)
    config = EngineConfig.from_options(model=str(tmp_path), quantization="int5")
    with pytest.raises(ConfigError, match="quantization is 'int5'; allowed: none, "):
        explain(config)


TEXT = (
    "Water moves in a circle. The sun warms the sea, and some of the water rises into the air as "
    "vapour. High up the air is cold, and the vapour turns into clouds made of small drops. When "
    "the drops grow heavy they fall as rain or snow. Rivers carry the water back to the sea."
)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("int8", 0.02), ("int4", 0.25)])
def test_the_demo_model_loses_little(name: str, most: float) -> None:
    def loss(quantization: str) -> float:
        options = {"dtype": "float32", "max_total_tokens": 1024, "quantization": quantization}
        params = SamplingParams(temperature=0, max_tokens=8, prompt_logprobs=1)
        with LLM(device="cpu", **options) as llm:
            if quantization == "int8":
                assert "Paris" in llm.generate(["The capital of France is"], params)[0].text
            rows = llm.generate([TEXT], params)[0].prompt_logprobs
        assert rows is not None
        losses = [-row.logprob for row in rows if row is not None]
        assert len(losses) > 50
        return math.fsum(losses) / len(losses)

    plain, quantized = loss("none"), loss(name)
    print(f"{name}: {quantized:.4f} nats per token, {plain:.4f} in float32")
    assert abs(quantized - plain) > 1e-5, "nothing was quantized"
    assert quantized - plain < most
