from chiplet import api


@api.hookimpl
def quantization_formats() -> list[api.QuantizationFormat]:
    """For all devices: a format speaks of numbers, not of kernels."""
    from fossil_clipped.format import ClippedInt8

    return [ClippedInt8()]
