"""A provider plugin, and a platform plugin, that work until a file tells them to fail."""

from __future__ import annotations

from pathlib import Path

PROVIDER_MANIFEST = """
name = "faulty"
kind = "provider"
[api]
attention = ">=1.0,<2"
linear = ">=1.0,<2"
ops = ">=1.0,<2"
"""

PLATFORM_MANIFEST = """
name = "brittle"
kind = "platform"
device_types = ["brittle"]
[api]
platform = ">=1.0,<2"
"""

PROVIDER = """
import ctypes
import os
import signal
from pathlib import Path
from chiplet.api import *

ORDERS = Path({orders!r})

def note(hook):
    with (ORDERS.parent / "told").open("a") as told:
        print(hook, os.getpid(), file=told)

@hookimpl
def configure(context):
    note("configure")

@hookimpl
def shutdown(context):
    note("shutdown")

def obey(part):
    if (ORDERS / part).exists():
        if (ORDERS / "segfault").exists():
            (ORDERS / "segfault").unlink()
            ctypes.string_at(0)
        kinds = {"memory": MemoryError, "leave": SystemExit}
        kind = next((kinds[each] for each in kinds if (ORDERS / each).exists()), RuntimeError)
        raise kind(part + " was told")

class Layout:
    # Keys of all pages first, so that pages must be converted for anybody else.
    name = "keys-first"
    def shape(self, spec, num_pages):
        return (2, num_pages, spec.page_size, spec.num_kv_heads, spec.head_dim)
    def page_bytes(self, spec):
        return 2 * spec.page_size * spec.num_kv_heads * spec.head_dim * spec.dtype.size_bytes
    def to_canonical(self, kv, page_ids, spec):
        return kv[:, page_ids].transpose(0, 1).contiguous()
    def from_canonical(self, canonical, kv, page_ids, spec):
        kv[:, page_ids] = canonical.transpose(0, 1)

class Attention:
    def __init__(self, request, inner):
        self.inner = inner
    def layouts(self):
        return (Layout(),)
    def plan(self, batch, layout):
        return self.inner.plan(batch, self.inner.layouts()[0])
    def run(self, q, k, v, kv, plan):
        obey("attention")
        return self.inner.run(q, k, v, kv.transpose(0, 1), plan)

class Linear:
    def __init__(self, request, inner):
        self.role = request.role
        self.inner = inner
    def pack(self, weights):
        return ("packed", self.inner.pack(weights))
    def run(self, x, packed):
        if self.role == "gate_up_proj":
            obey("linear")
        return self.inner.run(x, packed[1])

def faulty_op(request, inner):
    def run(*arguments):
        obey("ops")
        return inner(*arguments)
    return run

class Provider:
    name = "faulty"
    accepts = frozenset(Feature)
    def __init__(self, make):
        self.make = make
    def assess(self, request):
        return Yes(Tier.TUNED)
    def build(self, request, context):
        return self.make(request, context.reference(request))

class Norms(Provider):
    def assess(self, request):
        return Yes(Tier.TUNED) if request.op is Op.RMS_NORM else No.because("op", "norms alone")

@hookimpl
def attention(device):
    return [Provider(Attention)]

@hookimpl
def linear(device):
    return [Provider(Linear)]

@hookimpl
def ops(device):
    if (ORDERS / "deaf").exists():
        # As libraries do that want to be told the end themselves.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
    return [Norms(faulty_op)]
"""

PLATFORM = """
import time
from pathlib import Path
from chiplet.api import *

ORDERS = Path({orders!r})

@hookimpl
def probe(host):
    return [DeviceProbe(device_type="brittle", index=0, name="Brittle", total_memory_bytes=2**30)]

@hookimpl
def platform(device):
    if (ORDERS / "wait").exists():
        (ORDERS / "waiting").touch()
        time.sleep(60)
    from chiplet.reference.platform import ReferencePlatform

    class Brittle(ReferencePlatform):
        name = "brittle"
        # Once it has met a fault it does not work again, in this process.
        is_broken = False
        def record_event(self):
            if self.is_broken or (ORDERS / "device").exists():
                type(self).is_broken = True
                (ORDERS / "device").unlink(missing_ok=True)
                raise RuntimeError("the device is lost")
            return super().record_event()
    return Brittle()
"""


class Faulty:
    """Both plugins in a folder, installed for whoever has it on the path.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._orders = path / "orders"
        self._orders.mkdir()
        self._install("faulty", PROVIDER, PROVIDER_MANIFEST)
        self._install("brittle", PLATFORM, PLATFORM_MANIFEST)

    def order(self, *parts: str) -> None:
        """Fail from now on: attention, linear, ops or the device.

        With 'memory' an allocation fails; with 'leave' it raises SystemExit; with 'segfault' the
        process dies, once; with 'wait' the start of a device does not end; with 'deaf' the process
        takes no notice of SIGTERM.
        """
        for part in parts:
            (self._orders / part).touch()

    def forgive(self) -> None:
        """Fail no more."""
        for each in self._orders.iterdir():
            each.unlink()

    @property
    def is_waiting(self) -> bool:
        """Whether a start has come to where it was told to wait."""
        return (self._orders / "waiting").exists()

    def told(self) -> list[str]:
        """What the provider was told, each time with the process: 'configure 17'."""
        return (self.path / "told").read_text().splitlines()

    def _install(self, name: str, source: str, manifest: str) -> None:
        package = self.path / f"test_{name}"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "plugin.py").write_text(source.replace("{orders!r}", repr(str(self._orders))))
        (package / "chiplet_plugin.toml").write_text(manifest)
        info = self.path / f"chiplet_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: chiplet-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[chiplet.plugins]\n{name} = test_{name}.plugin\n")
