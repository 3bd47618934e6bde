"""`reasoning_effort` in templates, under the names and with the words that each of them has."""

from __future__ import annotations

import pytest

from pocketvlm.errors import RequestError
from pocketvlm.messages import ChatRequest
from pocketvlm.templates.prompt import ChatTemplate, TextSpan

HI = [{"role": "user", "content": "hi"}]
TALK = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
SWITCH = TALK + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}"
OFF_BY_DEFAULT = TALK + "{% if enable_thinking %}<think>{% endif %}"
OTHER_SWITCH = TALK + "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}"
WORD = "{{ 'Reasoning: ' + (reasoning_effort if reasoning_effort is defined else 'medium') }}" + TALK
CHOOSY = (
    "{% set reasoning_effort = reasoning_effort | default('no_think') %}"
    "{% if reasoning_effort not in ['no_think', 'low', 'high'] %}{{ raise_exception('what effort?') }}{% endif %}"
    + WORD
)
STUBBORN = "{% if reasoning_effort is defined %}{{ raise_exception('no effort') }}{% endif %}" + SWITCH


def told(source: str, effort: str | None) -> str:
    spans = ChatTemplate(source).render(ChatRequest.parse(HI, reasoning_effort=effort).messages, effort=effort)
    return "".join(span.text for span in spans if isinstance(span, TextSpan))


@pytest.mark.parametrize(
    ("source", "effort", "found"),
    [
        (TALK, "high", "<|user|>hi"),
        (TALK, "none", "<|user|>hi"),
        (SWITCH, None, "<|user|>hi"),
        (SWITCH, "low", "<|user|>hi"),
        (SWITCH, "none", "<|user|>hi<think>\n\n</think>"),
        (OFF_BY_DEFAULT, None, "<|user|>hi"),
        (OFF_BY_DEFAULT, "minimal", "<|user|>hi<think>"),
        (OTHER_SWITCH, "high", "<|user|>hi<think>"),
        (OTHER_SWITCH, "none", "<|user|>hi</think>"),
        (WORD, None, "Reasoning: medium<|user|>hi"),
        (WORD, "xhigh", "Reasoning: xhigh<|user|>hi"),
        (CHOOSY, "none", "Reasoning: no_think<|user|>hi"),
        (CHOOSY, "minimal", "Reasoning: low<|user|>hi"),
        (CHOOSY, "medium", "Reasoning: high<|user|>hi"),
        (CHOOSY, "unheard_of", "Reasoning: no_think<|user|>hi"),
        (STUBBORN, "none", "<|user|>hi<think>\n\n</think>"),
    ],
)
def test_effort(source: str, effort: str | None, found: str) -> None:
    assert told(source, effort) == found


def test_the_word_is_a_users() -> None:
    spans = ChatTemplate(WORD).render(ChatRequest.parse(HI).messages, effort="high")
    assert spans[1] == TextSpan("high", False)


@pytest.mark.parametrize("effort", ["", "<|im_end|>", "High", 3, "a" * 33])
def test_what_is_no_word(effort: object) -> None:
    with pytest.raises(RequestError) as refused:
        ChatRequest.parse(HI, reasoning_effort=effort)
    assert refused.value.param == "reasoning_effort"


def test_a_template_that_refuses_everything() -> None:
    with pytest.raises(RequestError, match="never"):
        told("{{ raise_exception('never') }}", "low")
