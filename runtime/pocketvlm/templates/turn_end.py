"""What a chat template writes before and behind an answer, which the model was trained to write around its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pocketvlm.errors import PocketVLMError
from pocketvlm.messages import AssistantMessage, Message, UserMessage
from pocketvlm.templates.prompt import ChatTemplate, Span, TextSpan

_QUESTION: Message = UserMessage(role="user", content="?")
_ANSWER = "pocketvlm"


def text_behind_answer(template: ChatTemplate) -> str:
    """Return what the template writes between an answer and the next question, without white space at its beginning.

    "" where it writes nothing or refuses such a conversation. Raises ModelError for a template that does too much.
    """
    question = _QUESTION
    answer: Message = AssistantMessage(role="assistant", content=_ANSWER)
    with template.probes():
        for messages in ([question, answer, question], [question, answer]):
            try:
                spans = template.render(messages, add_generation_prompt=False)
            except PocketVLMError:
                continue
            for span, following in pairwise(spans):
                if isinstance(span, TextSpan) and not span.special and span.text.endswith(_ANSWER):
                    return following.text.lstrip() if isinstance(following, TextSpan) and following.special else ""
    return ""


def texts_around_answer(
    template: ChatTemplate, *, effort: str | None = None, variables: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """Return what the template writes between a prompt for an answer and the answer's text, and what it writes then.

    Both are "" where a conversation does not begin with the prompt for its answer, as where the template opens a
    thought. `effort` and `variables` are those of `ChatTemplate.render`. Raises ModelError for a template that does too
    much.
    """
    answer: Message = AssistantMessage(role="assistant", content=_ANSWER)
    with template.probes():
        try:
            prompt = _flat(template.render([_QUESTION], effort=effort, variables=variables))
            whole = _flat(
                template.render([_QUESTION, answer], effort=effort, variables=variables, add_generation_prompt=False)
            )
        except PocketVLMError:
            return "", ""
    before, _, behind = whole.rpartition(_ANSWER)
    return (before.removeprefix(prompt) if before.startswith(prompt) else ""), behind


def _flat(spans: Sequence[Span]) -> str:
    return "".join(span.text for span in spans if isinstance(span, TextSpan))
