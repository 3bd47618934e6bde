"""The last conversation, for `chat --continue`: a file that only its owner can read.

It has the messages, with the paths of pictures but not their pixels, and which model answered. `/save` writes a file
that needs neither the pictures nor a model that reads the conversation again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
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


def keep_last(last: LastConversation, report: Callable[[str], None]) -> bool:
    """Write the conversation, in place of the one before. Where it cannot be kept, report why and return False."""
    kept = {
        "messages": [_kept(message) for message in last.messages],
        "seen": last.seen,
        "model": _absolute(last.model),
        "mmproj": _absolute(last.mmproj),
    }
    try:
        keep_text(last_file(), json.dumps(kept, default=_as_base64))
    except OSError as error:
        report(f"the conversation cannot be kept for --continue: {error.strerror or error}")
        return False
    return True


def read_last() -> tuple[LastConversation, list[str]]:
    """Return the last conversation, and the paths of its pictures that are no longer there.

    In the messages, a text stands for each of these. Raises SessionError where there is no conversation.
    """
    path = last_file()
    missing: list[str] = []
    try:
        last = LastConversation(**json.loads(path.read_text("utf-8")))
        for message in last.messages:
            if message["role"] and isinstance(content := message.get("content"), list):
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


def _kept(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message that can be read in any working directory, without passwords."""
    if not isinstance(content := message.get("content"), list):
        return message
    parts = [{name: value for name, value in part.items() if name != "password"} for part in content]
    for part in parts:
        if "path" in part:
            part["path"] = str(Path(part["path"]).absolute())
    return {**message, "content": parts}


def _absolute(name: str | None) -> str | None:
    """Return the path of a model for any working directory; a name stays one."""
    return str(Path(name).absolute()) if name and Path(name).exists() else name
