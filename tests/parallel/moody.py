"""Plugins whose rank 1 differs: what it does is said by the environment, which ranks inherit."""

from __future__ import annotations

MOOD = "MOODY_RANK"

PROVIDER = """
import os

RANK = 0
CALLS = 0

def mood():
    return os.environ.get("MOODY_RANK") if RANK == 1 else None

class Norm:
    name = "moody"
    accepts = frozenset(Feature)
    def assess(self, request):
        if request.op != Op.RMS_NORM or mood() == "refuse":
            return No.because("mood", "not today")
        return Yes(Tier.VENDOR)
    def build(self, request, context):
        inner = context.reference(request)
        def norm(x, weight, eps):
            global CALLS
            CALLS += 1
            if mood() == "raise" and CALLS > 8:
                raise ArithmeticError("rank 1 is in no mood")
            return inner(x, weight, eps)
        return norm

@hookimpl
def communication(device, topology):
    global RANK
    RANK = topology.local_ranks[0]
    if mood() == "leave":
        os._exit(3)
    return []

@hookimpl
def ops(device):
    return [Norm()]
"""

LONE_PLATFORM = """
@hookimpl
def probe(host):
    return [DeviceProbe(device_type="lone", index=0, name="the only one", total_memory_bytes=1)]

@hookimpl
def platform(device):
    from chiplet.reference.platform import ReferencePlatform
    class Lone(ReferencePlatform):
        take_share = None  # each rank needs a device of its own
    return Lone()
"""
