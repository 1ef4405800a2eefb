"""Formats of quantized checkpoints: found, held to what they promise, named when they break it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from chiplet.api import (
    Coding,
    Granularity,
    LayerFacts,
    LinearWeights,
    StoredCheckpoint,
    StoredMatrix,
    StoredTensor,
    WeightScheme,
)
from chiplet.errors import ModelError
from chiplet.formats.checkpoint import Checkpoint, Readers, open_checkpoint
from chiplet.reference.canonical import fault_of
from chiplet.reference.quantization import random_weights
from chiplet.testing.conformance.schemes import WEIGHT_SCHEMES
from chiplet.testing.formats import check_quantization_format, check_stored_format
from tests.unit.test_checkpoint import CONFIG

INT8 = WeightScheme(coding=Coding.INT8, granularity=Granularity.CHANNEL)
FP8 = WeightScheme(coding=Coding.FP8_E4M3, granularity=Granularity.TENSOR)
NAME = "model.layers.0.mlp.up_proj.weight"


class Toy:
    """Reads 'X.codes' and 'X.scale' as 'X.weight'."""

    name = "toy"
    summary = "toy of one scale"
    scheme: WeightScheme | None = FP8

    def recognizes(self, checkpoint: StoredCheckpoint) -> bool:
        return any(name.endswith(".codes") for name in checkpoint.tensors)

    def matrices(self, checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
        stems = [name[: -len(".codes")] for name in checkpoint.tensors if name.endswith(".codes")]
        return {
            f"{stem}.weight": StoredMatrix(
                parts={"codes": f"{stem}.codes", "scale": f"{stem}.scale"}, scheme=self.scheme
            )
            for stem in stems
        }

    def decode(
        self, checkpoint: StoredCheckpoint, matrix: StoredMatrix, parts: Mapping[str, Tensor]
    ) -> LinearWeights:
        return LinearWeights(
            scheme=matrix.scheme, weight=parts["codes"], scales=parts["scale"].float()
        )


class Plain(Toy):
    scheme = None

    def decode(self, checkpoint: Any, matrix: Any, parts: Mapping[str, Tensor]) -> LinearWeights:
        weight = parts["codes"].float() * parts["scale"].float()
        return LinearWeights(scheme=None, weight=weight)


def tensors() -> dict[str, Tensor]:
    stem = NAME.removesuffix(".weight")
    return {
        f"{stem}.codes": torch.arange(32.0).reshape(4, 8).to(torch.float8_e4m3fn),
        f"{stem}.scale": torch.tensor([0.5], dtype=torch.bfloat16),
        "model.norm.weight": torch.ones(8),
    }


def opened(folder: Path, *formats: Any, **quantization: Any) -> Checkpoint:
    config = CONFIG | ({"quantization_config": quantization} if quantization else {})
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(), folder / "model.safetensors")
    return open_checkpoint(folder, readers=Readers(formats))


def test_recognized_by_its_tensors_alone(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, Toy())
    assert checkpoint.schemes == {NAME: FP8}
    read = dict(checkpoint.tensors(torch.bfloat16))
    weights = read[NAME]
    assert isinstance(weights, LinearWeights)
    assert weights.weight.dtype == torch.float8_e4m3fn
    assert weights.scales is not None
    assert weights.scales.tolist() == [0.5]
    assert set(read) == {NAME, "model.norm.weight"}


def test_decoded_to_plain_numbers(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, Plain())
    assert checkpoint.schemes == {}
    read = dict(checkpoint.tensors(torch.bfloat16))[NAME]
    assert isinstance(read, Tensor)
    assert read.dtype == torch.bfloat16
    assert read[0].tolist() == [each / 2 for each in range(8)]


def test_the_last_that_recognizes_it_reads_it(tmp_path: Path) -> None:
    assert opened(tmp_path, Toy(), Plain()).schemes == {}
    assert opened(tmp_path, Plain(), Toy()).schemes == {NAME: FP8}


def test_small_floats_without_a_reader_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="of type F8_E4M3; supported"):
        opened(tmp_path)
    with pytest.raises(ModelError, match=r"quantized \(toy\); supported: none, and plain"):
        opened(tmp_path, quant_method="toy")


def broken(**methods: Any) -> Toy:
    return type("Broken", (Toy,), methods)()


def raising(*arguments: Any) -> Any:
    raise KeyError("ouch")


def matrix(**parts: str) -> Any:
    return lambda self, checkpoint: {NAME: StoredMatrix(parts=parts, scheme=FP8)}


def decoding(**changes: Any) -> Any:
    def decode(self: Toy, checkpoint: Any, matrix: Any, parts: Mapping[str, Tensor]) -> Any:
        given: dict[str, Any] = {"scheme": FP8, "weight": parts["codes"], "scales": torch.ones(1)}
        return LinearWeights(**(given | changes))

    return decode


def test_a_format_that_cannot_tell_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert opened(tmp_path, Toy(), broken(recognizes=raising)).schemes == {NAME: FP8}
    assert "recognizes raised KeyError: 'ouch'. It is passed over." in caplog.text
    with pytest.raises(ModelError, match="recognizes raised KeyError"):
        opened(tmp_path, broken(recognizes=raising), quant_method="toy")


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"matrices": raising}, "matrices raised KeyError"),
        ({"decode": raising}, "decode of 'model.layers.0.mlp.up_proj.weight' raised KeyError"),
        ({"matrices": matrix()}, "no tensor"),
        ({"matrices": matrix(codes="nowhere")}, "lacks tensor 'nowhere'"),
        ({"matrices": lambda *_: {}}, "none of its tensors is"),
        (
            {"matrices": matrix(a="model.norm.weight", b="model.norm.weight")},
            "gives tensor 'model.norm.weight' to",
        ),
        ({"decode": decoding(scheme=INT8)}, "its scheme is 'int8 per channel'"),
        ({"decode": decoding(scales=torch.ones(4))}, r"scales is [4] float32, not [1] float32"),
        ({"decode": decoding(scales=None)}, "scales is missing"),
        ({"decode": decoding(zero_points=torch.ones(1))}, "zero_points is given"),
    ],
)
def test_a_broken_format_is_named(tmp_path: Path, methods: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        list(opened(tmp_path, broken(**methods)).tensors(torch.float32))
    assert said in str(caught.value)


@pytest.mark.parametrize("scheme", WEIGHT_SCHEMES, ids=str)
def test_what_core_makes_is_canonical(scheme: WeightScheme) -> None:
    weights = random_weights(scheme, (256, 256), torch.Generator().manual_seed(0), 0.1)
    assert fault_of(weights, scheme) == ""
    assert "two dimensions" in fault_of(
        LinearWeights(scheme=scheme, weight=weights.weight[0]), scheme
    )


def test_the_kit_sees_what_is_wrong() -> None:
    values = {NAME: torch.arange(32.0).reshape(4, 8).to(torch.float8_e4m3fn).float() * 0.5}

    def check(subject: Toy, expected: Mapping[str, Tensor] = values) -> None:
        check_stored_format(subject, quantization={}, tensors=tensors(), values=expected)

    check(Toy())
    check(Plain())
    for methods, said in (
        ({"recognizes": lambda *_: False}, "does not recognize"),
        ({"recognizes": lambda *_: True}, "recognizes a plain"),
        ({"matrices": lambda *_: {}}, "it finds"),
        ({"decode": decoding(scales=torch.ones(2))}, "scales is"),
        ({"decode": decoding()}, "not close"),
    ):
        with pytest.raises(AssertionError, match=said):
            check(broken(**methods))


def test_the_kit_sees_a_format_that_loses_too_much() -> None:
    class Rounding:
        name = "rounding"
        steps = 127.0

        def scheme(self, layer: LayerFacts) -> WeightScheme | None:
            return INT8

        def quantize(self, weight: Tensor, scheme: WeightScheme) -> LinearWeights:
            scales = weight.abs().amax(1) / self.steps
            codes = (weight / scales[:, None]).round().to(torch.int8)
            return LinearWeights(scheme=scheme, weight=codes, scales=scales)

    check_quantization_format(Rounding())
    coarse = Rounding()
    coarse.steps = 1.0
    with pytest.raises(AssertionError, match="normalised mean square error"):
        check_quantization_format(coarse)


def test_types_of_stored_tensors_are_told(tmp_path: Path) -> None:
    seen: list[StoredCheckpoint] = []
    opened(tmp_path, broken(matrices=lambda self, each: seen.append(each) or Toy().matrices(each)))
    assert seen[0].tensors["model.norm.weight"] == StoredTensor((8,), "F32")
