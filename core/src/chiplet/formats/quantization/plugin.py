"""Core's own quantization formats, registered through the hook that outsiders use."""

from __future__ import annotations

from collections.abc import Sequence

from chiplet.api import QuantizationFormat, hookimpl


@hookimpl
def quantization_formats() -> Sequence[QuantizationFormat]:
    """The formats in this folder."""
    from chiplet.formats.quantization.fp8 import Fp8Channels  # noqa: PLC0415
    from chiplet.formats.quantization.int4 import Int4Groups  # noqa: PLC0415
    from chiplet.formats.quantization.int8 import Int8Channels  # noqa: PLC0415

    return [Int8Channels(), Fp8Channels(), Int4Groups()]
