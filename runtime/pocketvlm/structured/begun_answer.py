"""Whether the last message of a request is an answer that goes on, and what is known of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pocketvlm.messages import AssistantMessage, ChatRequest, ResponseMessage, TextPart
from pocketvlm.messages.tools import requires_call


def begun_answer(request: ChatRequest) -> AssistantMessage | None:
    """Return the last message if the answer continues it, else None.

    A client may say so. If it does not, a message of the assistant is continued as in llama.cpp's server, unless it
    cannot be the beginning of what the request asks for.
    """
    last = request.messages[-1]
    if not isinstance(last, AssistantMessage) or last.tool_calls:
        return None
    wish = request.continue_final_message
    if wish is None and request.add_generation_prompt is not None:
        wish = not request.add_generation_prompt
    if wish is None:
        wish = last.prefix
    if wish is None:
        wish = _may_begin(text_of(last), request)
    return last if wish and (text_of(last).strip() or last.thought.strip()) else None


def is_placeholder(request: ChatRequest) -> bool:
    """Whether the last message is an empty one of the assistant, in whose place clients want the answer."""
    last = request.messages[-1]
    return (
        isinstance(last, AssistantMessage)
        and not (last.tool_calls or last.content or last.thought)
        and request.continue_final_message is not False
        and len(request.messages) > 1
    )


def with_answer(request: ChatRequest, answer: Mapping[str, Any]) -> list[Any]:
    """Return the messages with their answer: joined with the last one if it continues that.

    Whether the model took the beginning up does not matter here.
    """
    begun = begun_answer(request)
    if begun is None:
        return [*(request.messages[:-1] if is_placeholder(request) else request.messages), answer]
    text, thought = text_of(begun), begun.thought
    content = answer.get("content")
    if text.strip():
        content = text + (content or "")
    else:
        thought += answer.get("reasoning_content", "")
    whole = {**answer, "content": content, "reasoning_content": thought or None}
    return [*request.messages[:-1], {key: value for key, value in whole.items() if value is not None}]


def continued(request: ChatRequest, answer: ResponseMessage) -> ChatRequest | None:
    """Return a request whose messages end with this answer; None where it is empty."""
    messages = with_answer(request, answer.model_dump(exclude_none=True))
    if not (messages[-1].get("content") or messages[-1].get("tool_calls")):
        return None
    # The fields say how that answer began, not the next one.
    fields = {"continue_final_message": None, "add_generation_prompt": None}
    return request.model_copy(update={"messages": ChatRequest.parse(messages).messages, **fields})


def text_of(message: AssistantMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content or () if isinstance(part, TextPart))


def without_white_space(text: str) -> str:
    """Return the beginning of a JSON text without white space between its values.

    White space that a number would need as its end stays.
    """
    kept: list[str] = []
    in_string = escaped = False
    for character in text:
        if in_string:
            in_string = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character in " \t\r\n":
            continue
        else:
            in_string = character == '"'
        kept.append(character)
    ends_in_word = bool(kept) and not in_string and (kept[-1].isalnum() or kept[-1] in "+-.")
    return "".join(kept) + " " * (ends_in_word and text != text.rstrip(" \t\r\n"))


def _may_begin(text: str, request: ChatRequest) -> bool:
    if request.tools and requires_call(request.tool_choice):
        return False  # the answer has to be a call
    if request.response_format is None or request.response_format.type == "text" or not text.strip():
        return True
    if not text.lstrip().startswith(("{", "[", '"')):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return True
    return False  # a whole answer
