"""Checkpoints whose matrices are quantized already: which tensors make a matrix, what they mean.

A `StoredFormat` says for one kind of checkpoint which matrices its tensors hold, and turns each
into the canonical tensors of `chiplet.api.LinearWeights` while it is loaded. Layers then ask for
linear providers with the matrix's scheme, as for any other: providers learn nothing of formats, and
formats nothing of devices. Where nobody serves a scheme, the matrix becomes plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from chiplet.api.quantization import LinearWeights, WeightScheme

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint, unread.

    Attributes:
        shape: as it is stored.
        dtype: by its name in safetensors files, like 'I32', 'BF16' or 'F8_E4M3'.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint:
    """What a format may look at before anything is read.

    Attributes:
        quantization: `quantization_config` of the checkpoint's config.json as it stands there;
            empty if there is none.
        tensors: all tensors by name.
    """

    quantization: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMatrix:
    """One matrix that a checkpoint holds in a form of its own.

    Attributes:
        parts: names of the tensors that hold it, by words that `StoredFormat.decode` knows them
            by; a tensor belongs to one matrix.
        scheme: what the numbers of `decode` mean; None where it gives plain ones.
    """

    parts: Mapping[str, str]
    scheme: WeightScheme | None


class StoredFormat(Protocol):
    """What the tensors of one kind of quantized checkpoint mean.

    Attributes:
        name: for people, like 'awq'.
        summary: what it reads, in a few words, for the message about a checkpoint that nobody
            reads.
    """

    name: str
    summary: str

    def recognizes(self, checkpoint: StoredCheckpoint) -> bool:
        """Whether it reads the checkpoint. Pure; asked of every checkpoint of safetensors.

        Of several formats that do, that of the plugin found last reads it, so that one plugin
        may replace what core reads.
        """
        ...

    def matrices(self, checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
        """Every quantized matrix, by the name that a plain one would have. Pure.

        Such a name is like 'model.layers.0.mlp.down_proj.weight'. Tensors in no matrix are read as
        they are in plain checkpoints.

        Raises:
            ModelError: tensors are missing, or of shapes that do not fit.
        """
        ...

    def decode(
        self, checkpoint: StoredCheckpoint, matrix: StoredMatrix, parts: Mapping[str, Tensor]
    ) -> LinearWeights:
        """The canonical tensors of one matrix, without bias; called once for each.

        Shapes: parts as they are stored, in main memory; the result has those of its scheme, for
        the whole matrix: a rank's share is cut from it afterwards.
        Mutates: `parts` may be taken over or changed; core drops them.

        Args:
            checkpoint: as for `matrices`.
            matrix: what `matrices` gave.
            parts: its tensors, by the words in `StoredMatrix.parts`.

        Raises:
            ModelError: the numbers cannot be what the format says.
        """
        ...
