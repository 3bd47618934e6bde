"""What a compiled schema lets a model write, judged byte by byte: no model is needed."""

from __future__ import annotations

import llguidance

from pocketvlm.structured.schema import CompiledSchema

BYTES = llguidance.LLTokenizer("byte")


def matcher(compiled: CompiledSchema) -> llguidance.LLMatcher:
    """Return the state of an answer; an error where no text matches."""
    return llguidance.LLMatcher(BYTES, f"%llguidance {{}}\nstart: {compiled.rule}", log_level=0)


def allows(compiled: CompiledSchema, text: str) -> bool:
    """Whether a text is a complete answer."""
    made, data = matcher(compiled), list(text.encode())
    assert not made.is_error(), made.get_error()
    return made.try_consume_tokens(data) == len(data) and made.is_accepting()
