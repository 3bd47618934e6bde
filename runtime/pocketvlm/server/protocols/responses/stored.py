"""Keep answers in memory for a while, so that the next request can name one instead of repeating the conversation."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pocketvlm.errors import RequestError
from pocketvlm.server.protocols.responses.items import Item
from pocketvlm.system.options import MEBIBYTES, Option, check_options

_ITEM_SIZE = 2_000  # bytes of an item's objects, without its texts
_PREFIXES = {"reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}  # of ids, by type; others are msg


@dataclass(frozen=True)
class ResponseLimits:
    """An answer is kept for `seconds` after its last use. At most `count` answers with `size` bytes in all are kept.

    Raises RequestError whose `param` names the field.
    """

    seconds: Annotated[
        float, Option("Seconds that a response stays available after its last use.", ("--response-ttl",), above=0)
    ] = 3600.0
    count: Annotated[
        int, Option("Most responses to keep for requests that continue them.", ("--response-count",), least=0)
    ] = 1024
    size: Annotated[
        int,
        Option("Memory for these responses and their pictures, in {unit}.", ("--response-store",), MEBIBYTES, least=0),
    ] = 128 << 20

    def __post_init__(self) -> None:
        check_options(self)
        if self.seconds == math.inf:
            raise RequestError("must be finite", "seconds")


class StoredItem:
    """An item of a conversation: `data` as JSON has it, with an id, and `item`, the same after validation."""

    def __init__(self, sent: Mapping[str, Any], item: Item) -> None:
        self._sent = sent
        self.item = item
        kind = str(sent.get("type") or "message")
        self.id: str = sent.get("id") or f"{_PREFIXES.get(kind, 'msg')}_{uuid.uuid4().hex}"
        self.data: dict[str, Any] = {"type": kind, **sent, "id": self.id}

    @cached_property
    def content(self) -> tuple[bytes, int]:
        """The digest of what was sent, and about how many bytes of memory it takes."""
        written = json.dumps(self._sent).encode()
        return hashlib.sha256(written).digest(), len(written) + _ITEM_SIZE

    def repeated(self) -> StoredItem:
        """Return the same item with an id of its own."""
        return StoredItem({name: value for name, value in self._sent.items() if name != "id"}, self.item)


@dataclass(frozen=True)
class StoredResponse:
    """An answer as it was sent, the items that it answers, and those of its output."""

    id: str
    body: bytes
    input: tuple[StoredItem, ...]
    output: tuple[StoredItem, ...]

    @property
    def conversation(self) -> tuple[StoredItem, ...]:
        return (*self.input, *self.output)


_Key = tuple[bytes, int]  # the digest of an item, and how many equal ones stand before it in its conversation


@dataclass
class _Shared:
    """An item of several answers."""

    item: StoredItem
    uses: int = 0


class ResponseStore:
    """The kept answers. Least recently used ones are removed first. Any thread may call.

    Conversations share their items, pictures among them: one that is in many answers is kept and counted once.
    """

    def __init__(self, limits: ResponseLimits | None = None, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits or ResponseLimits()
        self._clock = clock
        self._lock = threading.Lock()
        self._responses: OrderedDict[str, tuple[StoredResponse, float]] = OrderedDict()  # with their last use
        self._shared: dict[_Key, _Shared] = {}
        self._by_id: dict[str, StoredItem] = {}
        self._bytes = 0

    def add(self, id: str, body: bytes, input: Sequence[StoredItem], output: Sequence[StoredItem]) -> bool:
        """Keep an answer. Return False where the limits exclude it."""
        limits = self._limits
        conversation = (*input, *output)
        if not limits.count or len(body) + sum(item.content[1] for item in conversation) > limits.size:
            return False
        with self._lock:
            self._expire()
            shared = self._share(conversation)
            response = StoredResponse(id, body, shared[: len(input)], shared[len(input) :])
            self._responses[id] = response, self._clock()
            self._bytes += len(body)
            while len(self._responses) > limits.count or self._bytes > limits.size:
                self._drop(next(iter(self._responses)))
        return True

    def find(self, id: str) -> StoredResponse | None:
        """Return an answer, which counts as a use; None where it is unknown or was removed."""
        with self._lock:
            self._expire()
            if id not in self._responses:
                return None
            response, _ = self._responses.pop(id)
            self._responses[id] = response, self._clock()
            return response

    def item(self, id: str) -> StoredItem | None:
        """Return an item of a kept answer."""
        with self._lock:
            self._expire()
            return self._by_id.get(id)

    def remove(self, id: str) -> bool:
        with self._lock:
            self._expire()
            return self._drop(id)

    def held(self) -> tuple[int, int]:
        """Return the number of kept answers and their bytes."""
        with self._lock:
            self._expire()
            return len(self._responses), self._bytes

    def _share(self, items: Sequence[StoredItem]) -> tuple[StoredItem, ...]:
        shared = []
        for item, key in zip(items, _keys(items), strict=True):
            if key not in self._shared:
                self._shared[key] = _Shared(item)
                self._by_id.setdefault(item.id, item)
                self._bytes += item.content[1]
            entry = self._shared[key]
            entry.uses += 1
            shared.append(entry.item)
        return tuple(shared)

    def _drop(self, id: str) -> bool:
        if id not in self._responses:
            return False
        response, _ = self._responses.pop(id)
        self._bytes -= len(response.body)
        for item, key in zip(response.conversation, _keys(response.conversation), strict=True):
            entry = self._shared[key]
            entry.uses -= 1
            if not entry.uses:
                del self._shared[key]
                self._bytes -= item.content[1]
                if self._by_id.get(item.id) is item:
                    del self._by_id[item.id]
        return True

    def _expire(self) -> None:
        oldest = self._clock() - self._limits.seconds
        for id in [id for id, (_, used) in self._responses.items() if used <= oldest]:
            self._drop(id)


def _keys(conversation: Sequence[StoredItem]) -> Iterator[_Key]:
    counts: Counter[bytes] = Counter()
    for item in conversation:
        digest, _ = item.content
        yield digest, counts[digest]
        counts[digest] += 1
