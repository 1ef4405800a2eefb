"""Rows in the coding of the weights that they are multiplied with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from chiplet.api import Activations, Coding, WeightScheme
from chiplet_triton.device import DeviceTraits, launch_options
from chiplet_triton.kernels.eight_bits import quantize_rows_kernel
from chiplet_triton.linear.schemes import BLOCK


@dataclass(frozen=True, slots=True)
class CodedRows:
    """Quantizes inputs as a scheme says.

    Attributes:
        traits: of the device.
        code_type: of the codes.
        group: inputs that share a scale; 0 if all of a row do.
        is_static: the scale is given.
    """

    traits: DeviceTraits
    code_type: torch.dtype
    group: int
    is_static: bool

    @classmethod
    def of(cls, scheme: WeightScheme, traits: DeviceTraits) -> Self | None:
        """None if the scheme keeps inputs as they are."""
        if scheme.activations is Activations.KEPT:
            return None
        code_type = torch.int8 if scheme.coding is Coding.INT8 else torch.float8_e4m3fn
        is_static = scheme.activations is Activations.STATIC
        return cls(traits, code_type, scheme.group_size, is_static)

    def coded(self, x: Tensor, input_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, `[num_rows, K]`, and a scale for each row, or each of its groups.

        Shapes: x `[num_rows, K]`; input_scale `[1] float32`, read if it is static.
        """
        count = len(x) * (cdiv(x.shape[1], BLOCK) if self.group else 1)
        scales = torch.empty(count, dtype=torch.float32, device=x.device)
        codes = torch.empty(x.shape, dtype=self.code_type, device=x.device)
        self._write(x, codes, scales, input_scale, is_plain=False)
        return codes, scales

    def rounded(self, x: Tensor) -> Tensor:
        """What codes in groups and their scales stand for, in the type of x.

        Shapes: `[num_rows, K]`, and the same.
        """
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        self._write(x, y, y, y, is_plain=True)
        return y

    def _write(
        self, x: Tensor, codes: Tensor, scales: Tensor, input_scale: Tensor, *, is_plain: bool
    ) -> None:
        num_rows, k = x.shape
        groups = cdiv(k, BLOCK)
        quantize_rows_kernel[(num_rows,)](
            x,
            codes,
            scales,
            input_scale,
            x.stride(0),
            K=k,
            GROUP=self.group,
            BLOCK_GROUPS=next_power_of_2(groups),
            IS_STATIC=self.is_static,
            IS_PLAIN=is_plain,
            OVERLAP=self.traits.can_overlap,
            num_warps=min(16, max(1, next_power_of_2(groups) // 8)),
            **launch_options(self.traits),
        )
