from collections.abc import Mapping

from torch import Tensor

from chiplet.api import (
    Coding,
    Granularity,
    LinearWeights,
    ModelError,
    StoredCheckpoint,
    StoredMatrix,
    WeightScheme,
)


class Nibbles:
    """Four bits, halves of a byte the other way round."""

    name = "fossil-nibbles"
    summary = "fossil-nibbles"

    def recognizes(self, checkpoint: StoredCheckpoint) -> bool:
        """By the method that the tool writes."""
        return checkpoint.quantization.get("quant_method") == self.name

    def matrices(self, checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
        """Every 'X.nibbles' is matrix 'X.weight'."""
        size = checkpoint.quantization.get("group")
        if not isinstance(size, int) or size < 1:
            raise ModelError(f"group is {size!r}; expected a positive integer.")
        scheme = WeightScheme(coding=Coding.INT4, granularity=Granularity.GROUP, group_size=size)
        stems = [name.removesuffix(".nibbles") for name in checkpoint.tensors if ".nibbles" in name]
        return {
            f"{stem}.weight": StoredMatrix(
                parts={"nibbles": f"{stem}.nibbles", "steps": f"{stem}.steps"}, scheme=scheme
            )
            for stem in stems
        }

    def decode(
        self, checkpoint: StoredCheckpoint, matrix: StoredMatrix, parts: Mapping[str, Tensor]
    ) -> LinearWeights:
        """Swap the halves, widen the steps. Without zero points, int4 means q - 8 already."""
        nibbles = parts["nibbles"]
        return LinearWeights(
            scheme=matrix.scheme,
            weight=(nibbles << 4) | (nibbles >> 4),
            scales=parts["steps"].float(),
        )
