"""Chat templates in iota's GGUF file, with conversations of all kinds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fuzz.cases import Original
from fuzz.documents import replaced
from fuzz.formats import gguf
from fuzz.kinds import Attempt, Work
from fuzz.kinds.schemas import TOOLS
from fuzz.sound import MMPROJ, MODEL, QUESTION, SAMPLE
from pocketvlm import VLM
from pocketvlm.errors import PocketVLMError
from runtime import templates
from store import IOTA

BATCH = 40
_KEY = "tokenizer.chat_template"
_PICTURE = {"type": "image", "path": str(SAMPLE), "detail": "low"}
_CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"where": "left"}'}}
_USER = {"role": "user", "content": [_PICTURE, {"type": "text", "text": QUESTION}]}
CONVERSATIONS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([_USER], {}),
    ([{"role": "system", "content": "Be brief."}, _USER, {"role": "assistant", "content": "Two."}, _USER], {}),
    (
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "tool_calls": [_CALL]},
            {"role": "tool", "content": "a ball", "tool_call_id": "1"},
        ],
        {"tools": TOOLS},
    ),
]


def originals() -> dict[str, Original]:
    texts = {name.lower(): value for name, value in vars(templates).items() if name.isupper() and "{" in str(value)}
    texts["iota"] = (IOTA / "chat_template.jinja").read_text()
    return {name: Original("template", text.encode()) for name, text in texts.items() if isinstance(text, str)}


@contextmanager
def opened(work: Work) -> Iterator[Attempt]:
    model = gguf.decode(MODEL.read_bytes())
    (place,) = (number for number, entry in enumerate(model["metadata"]) if entry["key"] == _KEY)

    def attempt(_name: str, data: bytes) -> str | None:
        changed = gguf.encode(replaced(model, ["metadata", place, "value"], data))
        refused: list[str] = []
        with VLM.load(model=work.file("model.gguf", changed), mmproj=MMPROJ, threads=1, context_size=2048) as vlm:
            for messages, fields in CONVERSATIONS:
                with _noted(refused):
                    vlm.chat(messages, max_tokens=2, **fields)
        return "\n".join(refused[:1]) or None

    yield attempt


@contextmanager
def _noted(refused: list[str]) -> Iterator[None]:
    try:
        yield
    except PocketVLMError as error:
        refused.append(str(error))
