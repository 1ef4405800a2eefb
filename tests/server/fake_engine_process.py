"""The engine process with a fake engine."""

from __future__ import annotations

from chiplet.server.engine_loop import run_engine
from chiplet.server.termination import end_with
from chiplet.testing.fake_engine import start_fake_engine

if __name__ == "__main__":
    end_with(run_engine(start_fake_engine))
