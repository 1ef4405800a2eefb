"""Memory of tensors that come and go while a model loads, between others that stay."""

import linecache
import subprocess
import sys

from chiplet.models.lean_loading import lean_loading

# In a process of its own: whatever ran before leaves free memory in the heap, which comes first.
_LOADING = """
from pathlib import Path
import torch
from chiplet.models.lean_loading import lean_loading

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

kept, gone = [], []
with lean_loading():
    before = resident_bytes()
    for _ in range(200):
        gone.append(torch.ones(65536))  # 256 KiB
        kept.append(torch.ones(64))
    most = resident_bytes() - before
    gone.clear()
    print(most, resident_bytes() - before)
"""


def test_matrices_leave_no_holes_between_what_stays() -> None:
    command = [sys.executable, "-c", _LOADING]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    most, left = map(int, done.stdout.split())
    assert most > 45 << 20
    assert left < 8 << 20


def test_lines_of_sources_are_forgotten() -> None:
    assert linecache.getlines(__file__)
    with lean_loading():
        pass
    assert __file__ not in linecache.cache
