"""FolderMeeting: ranks that meet without an engine, over a file."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

_FILE_NAME = "meeting"


class FolderMeeting:
    """A meeting in the engine's rendezvous folder; see `chiplet.plugins.agreement.Meeting`.

    Attributes:
        rank: of this process.
    """

    def __init__(self, rendezvous: Path, rank: int, size: int, *, limit_s: float = 120.0) -> None:
        """Nobody is waited for yet.

        Args:
            rendezvous: folder that every rank can write to, and nobody else; fresh for each start.
            rank: of this process.
            size: number of ranks.
            limit_s: how long a rank waits for the others, each time.
        """
        self.rank = rank
        self._size = size
        # A file with locks: it needs no port, and who may open it is for the folder to say.
        self._store: Any = dist.FileStore(  # pyright: ignore[reportPrivateImportUsage] - public
            str(rendezvous / _FILE_NAME), size
        )
        self._store.set_timeout(datetime.timedelta(seconds=limit_s))
        self._round = 0

    def exchange(self, message: bytes) -> Sequence[bytes]:
        """What every rank gave, in the order of ranks; see `chiplet.plugins.agreement.Meeting`."""
        self._round += 1
        keys = [f"{self._round}/{rank}" for rank in range(self._size)]
        self._store.set(keys[self.rank], message)
        try:
            return [bytes(self._store.get(key)) for key in keys]
        except RuntimeError as error:  # a time limit of a store is one
            raise TimeoutError(f"not all of {self._size} ranks came") from error
