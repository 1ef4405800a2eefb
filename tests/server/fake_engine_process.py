"""The engine process with a fake engine."""

from __future__ import annotations

import sys

from chiplet.server.engine_loop import run_engine
from chiplet.testing.fake_engine import start_fake_engine

if __name__ == "__main__":
    sys.exit(run_engine(start_fake_engine))
