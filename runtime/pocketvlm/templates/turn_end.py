"""What a chat template writes behind an answer: the model was trained to write it when an answer is complete."""

from __future__ import annotations

from itertools import pairwise

from pocketvlm.errors import PocketVLMError
from pocketvlm.messages import AssistantMessage, Message, UserMessage
from pocketvlm.templates.prompt import ChatTemplate, TextSpan

_ANSWER = "pocketvlm"


def text_behind_answer(template: ChatTemplate) -> str:
    """Return what the template writes between an answer and the next question, without white space at its beginning.

    "" where it writes nothing or refuses such a conversation. Raises ModelError for a template that does too much.
    """
    question: Message = UserMessage(role="user", content="?")
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
