"""Weights: a checkpoint's tensors stream into a model, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from chiplet.errors import ModelError
from chiplet.formats.checkpoint import Checkpoint
from chiplet.layers.weights import Weight, WeightMap, WeightTarget
from chiplet.models.base import CausalLM

_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
"""Tensors that old checkpoints carry although they follow from the config."""


def load_weights(
    model: CausalLM,
    checkpoint: Checkpoint,
    wanted: WeightMap | None = None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    advance: Callable[[int], None],
) -> None:
    """Fill a model from a checkpoint; each tensor is dropped once its layer has packed it.

    Args:
        model: made, without weights.
        checkpoint: where the tensors come from.
        wanted: places to fill, if not all of the model's.
        dtype: type in which tensors are asked for.
        device: where they go.
        advance: called with each tensor's size in the type asked for, in bytes.

    Raises:
        ModelError: a tensor is missing, unexpected, there twice or of the wrong shape.
    """
    known = model.weight_map()
    targets = known if wanted is None else wanted
    missing = set(targets)
    unexpected: list[str] = []
    for name, tensor in checkpoint.tensors(dtype):
        if name in targets and name not in missing:
            raise ModelError(
                f"The checkpoint holds tensor '{name}' twice.",
                remedy="Remove files that do not belong to it, or add the index that names them.",
            )
        if name in targets:
            _place(targets, name, tensor, device)
            missing.discard(name)
        elif name not in known and not _is_ignored(name, known):
            unexpected.append(name)
        advance(math.prod(tensor.shape) * dtype.itemsize)
    if missing or unexpected:
        raise ModelError(
            f"The checkpoint does not fit its config: {_listing('missing', missing)}; "
            f"{_listing('unexpected', unexpected)}.",
            remedy="Check that the folder is complete and that config.json belongs to it.",
        )


def weight_bytes(model: CausalLM, dtype: torch.dtype) -> int:
    """Bytes of a checkpoint that fits the model, in a given type."""
    firsts = (places[0] for places in model.weight_map().values())
    return sum(math.prod(first.holder.part_shapes[first.part]) for first in firsts) * dtype.itemsize


def without_adopted(targets: WeightMap, old: WeightMap) -> dict[str, tuple[WeightTarget, ...]]:
    """Places whose layers cannot take over the weights of the old model's.

    Args:
        targets: places in a new model of the same checkpoint, whose layers take over what they can.
        old: places in the old one.
    """
    adopted: dict[int, bool] = {}
    left: dict[str, tuple[WeightTarget, ...]] = {}
    for name, places in targets.items():
        before = old.get(name, ())
        # A table of embeddings may be kept in another way now, by another layer.
        if [type(each.holder) for each in places] == [type(each.holder) for each in before]:
            for (holder, _), (other, _) in zip(places, before, strict=True):
                if id(holder) not in adopted:
                    adopted[id(holder)] = holder.adopt(other)
        rest = tuple(each for each in places if not adopted.get(id(each.holder), False))
        if rest:
            left[name] = rest
    return left


def fill_with_random(
    model: CausalLM,
    wanted: WeightMap | None = None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Fill a model, or the places wanted, with reproducible random weights: normal, deviation
    0.02; norms are 1.
    """
    generator = _generator(device).manual_seed(0)
    targets = model.weight_map()
    for name, places in targets.items():
        shape = places[0].holder.part_shapes[places[0].part]
        if len(shape) == 1:
            fill = torch.zeros if name.endswith(".bias") else torch.ones
            tensor = fill(shape, dtype=dtype, device=device)
        else:
            tensor = torch.empty(shape, dtype=dtype, device=generator.device)
            tensor.normal_(std=0.02, generator=generator)
        # Those not wanted are drawn all the same, so that the others come out as before.
        if wanted is None or name in wanted:
            _place(targets if wanted is None else wanted, name, tensor, device)


def _generator(device: torch.device) -> torch.Generator:
    """A source of random numbers, on the host where the device has none of its own."""
    try:
        return torch.Generator(device=device)
    except RuntimeError:
        return torch.Generator()


def _place(targets: WeightMap, name: str, tensor: Weight, device: torch.device) -> None:
    # Once for all places, so that tied weights stay one tensor.
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.to(device)
    else:
        tensor = tensor.mapped(lambda each: each.to(device))
    for holder, part in targets[name]:
        expected = holder.part_shapes[part]
        if tuple(tensor.shape) != expected:
            raise ModelError(
                f"Tensor '{name}' has shape {tuple(tensor.shape)}; the config says {expected}.",
                remedy="Check that config.json belongs to this checkpoint.",
            )
        holder.load(part, tensor)


def _is_ignored(name: str, targets: WeightMap) -> bool:
    # Some tied checkpoints store the head all the same; the embedding serves for both.
    is_tied_head = name == "lm_head.weight" and name not in targets
    return is_tied_head or name.endswith(_IGNORED_SUFFIXES)


def _listing(word: str, names: set[str] | list[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {word} ({shown}{more})" if names else f"none {word}"
