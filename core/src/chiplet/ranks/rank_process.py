"""`python -m chiplet.ranks.rank_process`: a rank other than 0 of a model that ranks share."""

from __future__ import annotations

import faulthandler
import gc
import logging
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import msgspec

from chiplet.errors import ConfigError, EngineError
from chiplet.ipc.process_ends import end_with_parent, read_settings
from chiplet.plugins import begin_choice, discover
from chiplet.ranks.following import follow
from chiplet.ranks.links import RankLink
from chiplet.ranks.messages import RankFailed, RankSettings

_STDIN = 0


def main() -> int:
    """Be a rank until rank 0 says to end, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a start makes stays: looking for garbage in it takes a tenth of the time.
    gc.disable()
    settings = msgspec.json.decode(read_settings(_STDIN), type=RankSettings)
    end_with_parent(_STDIN, at_once=settings.ends_at_once)
    faulthandler.enable()
    logging.basicConfig(
        level=settings.log_level,
        format=f"%(asctime)s %(levelname)s rank {settings.rank} %(name)s: %(message)s",
        stream=sys.stderr,
    )
    link = RankLink(Path(settings.folder), settings.rank)
    with ExitStack() as at_end:
        at_end.callback(link.close)
        try:
            _serve(settings, link, at_end)
        except Exception as error:
            logging.getLogger(__name__).debug("What ended this rank:", exc_info=error)
            link.report_failure(_last_words(settings.rank, error))
            return 1
    return 0


def _serve(settings: RankSettings, link: RankLink, at_end: ExitStack) -> None:
    device = settings.config.device
    plugins = discover(device)
    at_end.callback(plugins.shut_down)
    follow(settings, link, begin_choice(plugins, device))


def _last_words(rank: int, error: Exception) -> RankFailed:
    match error:
        case ConfigError():
            return RankFailed(rank, error.problem, error.remedy)
        case EngineError():
            return RankFailed(rank, str(error), deny=error.deny)
        case _:
            return RankFailed(
                rank,
                f"{type(error).__name__}: {error}",
                "See the traceback with '--log-level debug'.",
            )


if __name__ == "__main__":
    sys.exit(main())
