"""Version of each plugin interface, as (major, minor).

A minor step adds optional request fields or features. A major step changes what a plugin must do.
An interface at major 0 may change freely.
"""

from __future__ import annotations

INTERFACE_VERSIONS: dict[str, tuple[int, int]] = {
    "platform": (0, 1),
    "attention": (0, 1),
    "linear": (0, 1),
    "ops": (0, 1),
    "communication": (0, 1),
    "compilation": (0, 1),
    "moe": (0, 1),
    "models": (0, 1),
    "quantization": (0, 1),
}
