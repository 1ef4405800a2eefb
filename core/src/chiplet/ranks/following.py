"""Following: what a rank other than 0 does, from its start to its end."""

from __future__ import annotations

from pathlib import Path

from chiplet.api import Topology
from chiplet.assembly import assemble, make_runner, make_tables
from chiplet.config import EngineConfig
from chiplet.errors import EngineError
from chiplet.models.lean_loading import lean_loading
from chiplet.plugins import ChosenDevice, PendingDevice
from chiplet.ranks.links import RankLink
from chiplet.ranks.messages import EndOrder, LaunchOrder, PrepareOrder, RankSettings
from chiplet.recovery import denials_of
from chiplet.runner.runner import LaunchedStep, ModelRunner
from chiplet.seats import Seat
from chiplet.stock import take_stock


class _Follower:
    """A muster that starts nobody; see `chiplet.seats.Muster`."""

    def __init__(self, settings: RankSettings, link: RankLink) -> None:
        self.rank = settings.rank
        self._seat = Seat(
            topology=Topology(
                world_size=settings.size,
                local_ranks=(settings.rank,),
                rendezvous=str(Path(settings.folder)),
            ),
            meeting=link,
        )

    def gather(self) -> None:
        """They are there."""

    def seat(self, config: EngineConfig, chosen: ChosenDevice) -> Seat:
        """The seat that rank 0 gave."""
        return self._seat


def follow(settings: RankSettings, link: RankLink, choice: PendingDevice) -> None:
    """Be a rank: load a slice of the model, and do what rank 0 says until it says to end.

    Raises:
        ConfigError: this rank cannot start, or they cannot agree.
        EngineError: a step failed.
    """
    with lean_loading():
        parts = assemble(settings.config, choice, _Follower(settings, link))
    communicator = parts.group.ranks.communicator
    assert communicator is not None
    try:
        stock = take_stock(parts)
        runner = make_runner(parts, *make_tables(parts, stock.num_pages))
        parts.selector.seal()
        try:
            _carry_out(runner, link)
        except Exception as error:
            raise EngineError(
                f"{type(error).__name__}: {error}", deny=denials_of(error, parts.selector.bound)
            ) from error
    finally:
        communicator.close()


def _carry_out(runner: ModelRunner, link: RankLink) -> None:
    """Do as told, one step ahead of the device as rank 0 is."""
    before: LaunchedStep | None = None
    while True:
        order = link.order()
        match order:
            case LaunchOrder(plan=plan, bucket=bucket):
                launched = runner.launch_in(plan, bucket)
                if before is not None:
                    before.wait()
                before = launched
            case PrepareOrder(bucket=bucket):
                link.report_prepared(runner.prepare_one(bucket))
            case EndOrder():
                return
