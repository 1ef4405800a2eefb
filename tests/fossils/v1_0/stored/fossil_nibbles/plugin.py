from chiplet import api


@api.hookimpl
def stored_formats() -> list[api.StoredFormat]:
    """Asked when a checkpoint is opened; core's own formats come through the same hook."""
    from fossil_nibbles.format import Nibbles

    return [Nibbles()]
