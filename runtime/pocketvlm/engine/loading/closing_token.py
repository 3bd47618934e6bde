"""The token that a model's chat template writes behind an answer, whatever the file says about tokens that end one."""

from __future__ import annotations

from contextlib import suppress

from pocketvlm.errors import ModelError
from pocketvlm.native.llama import Model
from pocketvlm.templates.prompt import ChatTemplate
from pocketvlm.templates.turn_end import text_behind_answer


def closing_token(model: Model) -> int | None:
    """Return the token; None where the template writes ordinary text or nothing, or cannot be used."""
    if not model.chat_template:
        return None
    text = ""
    with suppress(ModelError):  # reported where the template is used
        bos, eos = model.token_text(model.bos), model.token_text(model.eos)
        text = text_behind_answer(ChatTemplate(model.chat_template, bos=bos, eos=eos))
    token = next(iter(model.tokenize(text, special=True)), None) if text else None
    return token if token is not None and token != model.bos and model.is_mark(token) else None
