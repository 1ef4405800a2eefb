"""Core's own quantization formats, registered through the hook that outsiders use."""

from __future__ import annotations

from collections.abc import Sequence

from chiplet.api import QuantizationFormat, StoredFormat, hookimpl


@hookimpl
def quantization_formats() -> Sequence[QuantizationFormat]:
    """The formats in this folder."""
    from chiplet.formats.quantization.fp4 import Mxfp4, Nvfp4  # noqa: PLC0415
    from chiplet.formats.quantization.fp8 import (  # noqa: PLC0415
        DynamicFp8Channels,
        Fp8Channels,
    )
    from chiplet.formats.quantization.int4 import Int4Groups  # noqa: PLC0415
    from chiplet.formats.quantization.int8 import Int8Channels  # noqa: PLC0415

    return [
        Int8Channels(),
        Fp8Channels(),
        DynamicFp8Channels(),
        Int4Groups(),
        Mxfp4(),
        Nvfp4(),
    ]


@hookimpl
def stored_formats() -> Sequence[StoredFormat]:
    """Four bits in words, as two tools write them, and numbers with scales, as four do."""
    from chiplet.formats.quantization.packed_words import Awq, Gptq  # noqa: PLC0415
    from chiplet.formats.quantization.stored_numbers import (  # noqa: PLC0415
        COMPRESSED_TENSORS,
        FP8,
        MODELOPT,
        MXFP4,
    )

    return [Awq(), Gptq(), FP8, MODELOPT, COMPRESSED_TENSORS, MXFP4]
