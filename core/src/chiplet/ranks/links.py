"""Links: the sockets between rank 0 and the others, which are also their meeting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chiplet.ipc.sockets import Inbox, Outbox
from chiplet.ranks.messages import (
    EndOrder,
    LaunchOrder,
    Prepared,
    PrepareOrder,
    RankFailed,
    Said,
    Told,
    ToLeader,
    ToRank,
    decode_array,
    encode_array,
)

LEADER_SOCKET = "leader.sock"

Order = LaunchOrder | PrepareOrder | EndOrder


def rank_socket(rank: int) -> str:
    """Name of the socket at which a rank receives."""
    return f"rank{rank}.sock"


class LeaderLink:
    """Rank 0's end: one socket to each of the others, and one from all of them.

    Only one thread at a time may use it.
    """

    def __init__(self, folder: Path, size: int) -> None:
        """Open the sockets; nobody need be there yet."""
        self._inbox: Inbox[ToLeader] = Inbox(folder / LEADER_SOCKET, ToLeader)
        self._outboxes = [Outbox(folder / rank_socket(r), encode_array) for r in range(1, size)]

    def tell(self, message: ToRank) -> None:
        """Send a message to all others; never blocks."""
        for each in self._outboxes:
            each.send(message)

    def hear(self, limit_s: float) -> ToLeader | None:
        """The next message; None if there is none within the time."""
        return self._inbox.receive() if self._inbox.has_come(limit_s) else None

    def close(self) -> None:
        """Close all sockets; what was told still leaves if the others take it soon."""
        self._inbox.close()
        for each in self._outboxes:
            each.close()


class RankLink:
    """The end of a rank other than 0; a `chiplet.plugins.agreement.Meeting` too.

    Attributes:
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        """Open the sockets. Rank 0 is there."""
        self.rank = rank
        self._inbox: Inbox[ToRank] = Inbox(folder / rank_socket(rank), ToRank, decode_array)
        self._outbox = Outbox(folder / LEADER_SOCKET)

    def exchange(self, message: bytes) -> Sequence[bytes]:
        """What every rank gave; see `chiplet.plugins.agreement.Meeting`.

        Waits without a limit: where rank 0 goes, this process goes too.
        """
        self._outbox.send(Said(self.rank, message))
        told = self._inbox.receive()
        assert isinstance(told, Told), told
        return told.words

    def order(self) -> Order:
        """What to do next; blocks until rank 0 says so."""
        order = self._inbox.receive()
        assert not isinstance(order, Told), order
        return order

    def report_prepared(self, failure: str) -> None:
        """Tell rank 0 that a bucket is prepared, or why not."""
        self._outbox.send(Prepared(self.rank, failure))

    def report_failure(self, failed: RankFailed) -> None:
        """Tell rank 0 why this rank ends."""
        self._outbox.send(failed)

    def close(self) -> None:
        """Close; what was reported still leaves."""
        self._inbox.close()
        self._outbox.close()
