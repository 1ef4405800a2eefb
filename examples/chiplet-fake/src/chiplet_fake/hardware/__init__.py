"""The pretended accelerator: what a vendor's driver and torch backend would bring.

Nothing here knows of Chiplet. `tensor` makes `fake` a device type of torch, `stream` is its queue,
`memory` its memory.
"""

from chiplet_fake.hardware.memory import MEMORY
from chiplet_fake.hardware.stream import STREAM, DeviceFault, Graph
from chiplet_fake.hardware.tensor import DEVICE

__all__ = ["DEVICE", "MEMORY", "STREAM", "DeviceFault", "Graph"]
