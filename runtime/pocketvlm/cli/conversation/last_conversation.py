"""The last conversation, for `chat --continue`: a file that only its owner can read.

It has the messages, with the paths of pictures but not their pixels, and which model answered. `/save` writes a file
that needs neither the pictures nor a model that reads the conversation again.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.errors import SessionError
from pocketvlm.system.atomic import keep_text
from pocketvlm.system.machine import state_folder


@dataclass(frozen=True)
class LastConversation:
    """`model` and `mmproj` are what the command line named; `seen` counts the pictures and pages of `messages`."""

    messages: list[dict[str, Any]]
    seen: int = 0
    model: str | None = None
    mmproj: str | None = None


def last_file() -> Path:
    return state_folder() / "last-conversation.json"


def keep_last(last: LastConversation) -> None:
    """Write the conversation, in place of the one before. Raises OSError."""
    fields = {**vars(last), "messages": _without_passwords(last.messages)}
    keep_text(last_file(), json.dumps(fields, default=_as_base64))


def read_last() -> tuple[LastConversation, list[str]]:
    """Return the last conversation, and the paths of its pictures that are no longer there.

    In the messages, a text stands for each of these. Raises SessionError where there is no conversation.
    """
    path = last_file()
    missing: list[str] = []
    try:
        last = LastConversation(**json.loads(path.read_text("utf-8")))
        for message in last.messages:
            if isinstance(content := message["content"], list):
                message["content"] = [_part(part, missing) for part in content]
    except FileNotFoundError:
        raise SessionError("there is no conversation to go on with", path) from None
    except OSError as error:
        raise SessionError(f"cannot be read: {error.strerror}", path) from None
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise SessionError("is not a conversation that this version can read", path) from None
    return last, missing


def _part(part: dict[str, Any], missing: list[str]) -> dict[str, Any]:
    if isinstance(part.get("image"), dict):
        return {**part, "image": base64.b64decode(part["image"]["base64"])}
    path = part.get("path")
    if path is None or Path(path).is_file():
        return part
    missing.append(path)
    return {"type": "text", "text": f"[{Path(path).name}, a picture that is no longer there]"}


def _as_base64(value: object) -> Any:
    """In a conversation from a session, parts have the bytes of pictures."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} in a message")


def _without_passwords(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def plain(part: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in part.items() if name != "password"}

    return [
        {
            **message,
            "content": list(map(plain, content)) if isinstance(content := message["content"], list) else content,
        }
        for message in messages
    ]
