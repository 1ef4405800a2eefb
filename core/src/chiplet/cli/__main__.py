"""`python -m chiplet.cli` is `chiplet`."""

from __future__ import annotations

import sys

from chiplet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
