from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch

from chiplet.errors import ModelError
from chiplet.layers.weights import Shape, WeightTarget
from chiplet.models.weights import load_weights

CPU = torch.device("cpu")


class Holder:
    """Remembers what it was given."""

    part_shapes: Mapping[str, Shape] = {"weight": (2, 3)}

    def __init__(self) -> None:
        self.loaded: list[torch.Tensor] = []

    def load(self, part: str, tensor: torch.Tensor) -> None:
        self.loaded.append(tensor)

    def adopt(self, other: Holder) -> bool:
        self.loaded = other.loaded
        return True


class Model:
    """Two layers; the first two names are tied."""

    def __init__(self) -> None:
        self.holders = [Holder(), Holder(), Holder()]

    def weight_map(self) -> dict[str, tuple[WeightTarget, ...]]:
        first, second, third = (WeightTarget(holder, "weight") for holder in self.holders)
        return {"tied": (first, second), "alone": (third,)}


class Tensors:
    """A checkpoint of given tensors."""

    def __init__(self, *named: tuple[str, tuple[int, ...]]) -> None:
        self._named = named

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in self._named:
            yield name, torch.ones(shape, dtype=dtype)


def _load(*named: tuple[str, tuple[int, ...]]) -> Model:
    model = Model()
    load_weights(
        model,  # type: ignore[arg-type]
        Tensors(*named),  # type: ignore[arg-type]
        dtype=torch.float32,
        device=CPU,
        advance=lambda num_bytes: None,
    )
    return model


def test_tied_weights_stay_one_tensor() -> None:
    model = _load(("tied", (2, 3)), ("alone", (2, 3)), ("x.rotary_emb.inv_freq", (4,)))
    assert model.holders[0].loaded[0] is model.holders[1].loaded[0]
    assert len(model.holders[2].loaded) == 1


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([("tied", (2, 3))], "1 missing .alone.; none unexpected"),
        ([("tied", (2, 3)), ("alone", (2, 3)), ("more", (1,))], "none missing; 1 unexpected"),
        ([("tied", (2, 3)), ("alone", (3, 2))], r"'alone' has shape \(3, 2\).*\(2, 3\)"),
        ([("tied", (2, 3)), ("alone", (2, 3)), ("tied", (2, 3))], "'tied' twice"),
    ],
)
def test_what_does_not_fit_is_refused(
    named: list[tuple[str, tuple[int, ...]]], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        _load(*named)
