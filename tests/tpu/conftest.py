"""XLA on the processor, with four devices of it, and programs compiled in a hurry."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")


def pytest_configure(config):
    # pytest sets filters anew for each test; these are those of the compiler itself.
    for message in ("Explicitly requested dtype", "The given NumPy array is not writable"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}")
