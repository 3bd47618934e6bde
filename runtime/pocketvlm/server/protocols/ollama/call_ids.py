"""Ids of tool calls and their results: Ollama's clients send none, and some chat templates need them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def with_call_ids(messages: Iterable[Any]) -> list[Any]:
    """Return messages in which every call has an id, and every result that of the first call it may belong to."""
    changed: list[Any] = []
    open_calls: list[tuple[str, Any]] = []  # ids and names of calls without a result
    number = 0
    for message in messages:
        if isinstance(message, Mapping) and isinstance(calls := message.get("tool_calls"), list):
            with_ids = []
            for call in calls:
                if isinstance(call, Mapping):
                    if not call.get("id"):
                        call = {**call, "id": f"call_{number}"}
                        number += 1
                    function = call.get("function")
                    open_calls.append((call["id"], function.get("name") if isinstance(function, Mapping) else None))
                with_ids.append(call)
            message = {**message, "tool_calls": with_ids}
        elif isinstance(message, Mapping) and message.get("role") == "tool" and open_calls:
            given, name = message.get("tool_call_id"), message.get("tool_name") or message.get("name")
            matches = [entry for entry in open_calls if (entry[0] == given if given else entry[1] == name)]
            if matches or not (given or name):
                entry = (matches or open_calls)[0]
                open_calls.remove(entry)
                message = {**message, "tool_call_id": entry[0]}
        changed.append(message)
    return changed
