"""One rank as a process: chooses with the others, connects, and prints what came of it as JSON.

    python -m tests.parallel.rank_process RENDEZVOUS RANK SIZE PLUGIN_FOLDER OPTIONS

OPTIONS are those of `DeviceOptions`, as JSON. Distributions are looked for in the folder alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from chiplet.api import CommunicationRequest, Dtype, GroupKind, Op, OpRequest, Topology
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError
from chiplet.plugins import Selector, choose_device, discover, discovery
from chiplet.plugins.agreement import choose_together, connect_together
from chiplet.plugins.self_check.communication import communication_fault
from tests.parallel.folder_meeting import FolderMeeting

NORM = OpRequest(op=Op.RMS_NORM, dtype=Dtype.FLOAT32)
LIMIT_S = 60.0


def work(folder: str, rank: int, size: int, options: dict[str, Any]) -> dict[str, Any]:
    device = DeviceOptions(**{name: tuple(each) for name, each in options.items()})
    plugins = discover(device)
    chosen = choose_device(plugins, DeviceOptions(device="reference"))
    topology = Topology(world_size=size, local_ranks=(rank,), rendezvous=folder)
    selector = Selector(plugins, chosen, device, topology)
    meeting = FolderMeeting(Path(folder), rank, size, limit_s=LIMIT_S)
    group = CommunicationRequest(
        group=GroupKind.TENSOR, ranks=tuple(range(size)), dtype=Dtype.BFLOAT16
    )
    choose_together(selector, meeting, lambda: (selector.communicator(group), selector.op(NORM)))
    torch_device = chosen.platform.torch_device
    fault_of = partial(communication_fault, request=group, rank=rank, device=torch_device)
    communicator = connect_together(selector, group, meeting, fault_of)
    communicator.barrier()
    communicator.close()
    plan = selector.plan()
    return {
        "hash": plan.hash,
        "served": {each.operation: each.server.provider for each in plan.choices},
        "reasons": [text for each in plan.choices for no in each.rejections for text in no.reasons],
    }


def main() -> None:
    folder, rank, size, plugins, options = sys.argv[1:]
    sys.path.insert(0, plugins)
    found = partial(importlib.metadata.distributions, path=[plugins])
    discovery.distributions = found
    try:
        result = work(folder, int(rank), int(size), json.loads(options))
    except ConfigError as error:
        result = {"error": str(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
