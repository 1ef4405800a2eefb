"""Without Triton there is nothing to test, and with it two processes are needed."""

import os
from importlib.util import find_spec

HAS_TRITON = find_spec("triton") is not None and find_spec("chiplet_triton") is not None

# What runs in the interpreter does so in a process of its own: Triton reads the switch once.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
if not HAS_TRITON:
    collect_ignore += [
        "interpreted",
        "test_triton_plugin.py",
        "test_triton_kernels.py",
        "compile_kernels.py",
    ]


def pytest_report_header():
    return None if HAS_TRITON else "chiplet-triton or triton is not installed: no tests of it"
