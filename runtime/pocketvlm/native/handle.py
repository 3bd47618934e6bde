"""Own a native object: free it once, children before parents, also at interpreter exit."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from pocketvlm.errors import EngineClosedError

Self_ = TypeVar("Self_", bound="Handle")


class Handle:
    """A raw pointer, the function that frees it, and the parent that must outlive it.

    A child keeps its parent alive; closing a parent closes its children first. At exit, weakref.finalize runs in
    reverse order of creation, which is the same order.
    """

    def __init__(self, raw: Any, free: Callable[[Any], None], parent: Handle | None = None) -> None:
        self._raw = raw
        self._parent = parent
        self._children: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._finalizer = weakref.finalize(self, free, raw)
        if parent is not None:
            parent._children.add(self)

    @property
    def raw(self) -> Any:
        """The pointer. Raises EngineClosedError where the object is closed, so nothing is used after it was freed."""
        if not self._finalizer.alive:
            raise EngineClosedError(f"{type(self).__name__} is closed")
        return self._raw

    @property
    def closed(self) -> bool:
        return not self._finalizer.alive

    def close(self) -> None:
        """Free the object and its children. Closing again does nothing."""
        for child in list(self._children):
            child.close()
        self._finalizer()

    def __enter__(self: Self_) -> Self_:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
