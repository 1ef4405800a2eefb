"""Who waits for a slot."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

from chiplet.memory.radix_tree import TokenKey, token_key
from chiplet.request import Request, TokenIds


@dataclass(slots=True, eq=False)
class Waiting:
    """A request without a slot; only the Scheduler changes it.

    Attributes:
        request: the request.
        order: counts arrivals; a retracted request keeps its own.
        token_ids: prompt and answer so far, `[num_tokens] int32`.
        is_retracted: it ran before and had to make room.
        num_overtaken: how many younger requests were admitted before it.
        num_cached_tokens: tokens that the tree has of it, when the tree was at `generation`.
        generation: of the tree, at the last match; None before the first.
    """

    request: Request
    order: int
    token_ids: TokenIds
    is_retracted: bool = False
    num_overtaken: int = 0
    num_cached_tokens: int = 0
    generation: int | None = None
    _key: TokenKey | None = None

    @property
    def key(self) -> TokenKey:
        """The tokens as the radix tree compares them; made when the request's turn comes near."""
        if self._key is None:
            self._key = token_key(self.token_ids)
        return self._key


class WaitingQueue:
    """Waiting requests in the order of their arrival.

    Attributes:
        num_tokens: known tokens of all of them.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self._entries: OrderedDict[str, Waiting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    def append(self, waiting: Waiting) -> None:
        """Add one that has just arrived."""
        self._entries[waiting.request.request_id] = waiting
        self.num_tokens += len(waiting.token_ids)

    def put_first(self, waiting: Waiting) -> None:
        """Add one that was retracted: it arrived before all who wait."""
        self.append(waiting)
        self._entries.move_to_end(waiting.request.request_id, last=False)

    def remove(self, request_id: str) -> Waiting:
        """Take one out, wherever it stands."""
        waiting = self._entries.pop(request_id)
        self.num_tokens -= len(waiting.token_ids)
        return waiting

    def oldest(self, count: int) -> list[Waiting]:
        """The first `count`, or all if there are fewer."""
        return list(islice(self._entries.values(), count))
