"""Whether the kernels are built from the sources that lie beside this file.

In an editable install Python's files are today's at once; the library is that of the last build.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).parent / "kernels"
"""Where the sources are, if they are there: no wheel has them."""


def digest_of(kernels: Path) -> str | None:
    """One number over all sources, as CMakeLists.txt computes it; None where there are none."""
    sources = [*kernels.glob("*.cpp"), *kernels.glob("*.h")]
    if not sources:
        return None
    sources.append(kernels.parents[2] / "CMakeLists.txt")
    digests = sorted(hashlib.sha256(each.read_bytes()).hexdigest() for each in sources)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def is_stale(library: Any, kernels: Path = KERNELS) -> bool:
    """Whether the library is of other sources than those in the folder."""
    today = digest_of(kernels)
    # Libraries of before say nothing of their sources.
    return today is not None and getattr(library, "sources", lambda: "")() != today
