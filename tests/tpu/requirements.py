"""Prints what packages of this repository require, without torch and without one another.

    python tests/tpu/requirements.py core plugins/cpu plugins/tpu

For an environment whose torch pip must not resolve: that of torch_xla.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

LEFT_OUT = re.compile(r"(torch|chiplet[\w-]*)\b")


def requirements(folders: list[Path]) -> list[str]:
    """Requirements of the packages in folders, in order, each once."""
    found: dict[str, None] = {}
    for folder in folders:
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        found |= dict.fromkeys(each for each in project["dependencies"] if not LEFT_OUT.match(each))
    return list(found)


if __name__ == "__main__":
    print("\n".join(requirements([Path(each) for each in sys.argv[1:]])))
