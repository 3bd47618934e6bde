"""Fields of other servers that change nothing here. They are accepted, because clients send them to every server."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from pocketvlm.messages.base import Frozen

_Ignored = Annotated[Any, Field(description="Accepted and ignored.", repr=False)]


class IgnoredFields(Frozen):
    """Hints, accounting and storage of services. A field that would change an answer does not belong here."""

    # OpenAI
    store: _Ignored = None
    service_tier: _Ignored = None
    safety_identifier: _Ignored = None
    prompt_cache_key: _Ignored = None
    prompt_cache_retention: _Ignored = None
    prompt_cache_options: _Ignored = None
    prediction: _Ignored = None
    verbosity: _Ignored = None
    web_search_options: _Ignored = None
    moderation: _Ignored = None
    audio: _Ignored = None  # the voice of an answer that `modalities` asks for
    # llama.cpp
    cache_prompt: _Ignored = None
    id_slot: _Ignored = None
    n_keep: _Ignored = None
    timings_per_token: _Ignored = None
    return_progress: _Ignored = None
    # vLLM
    priority: _Ignored = None
    request_id: _Ignored = None
    cache_salt: _Ignored = None
    # Ollama
    keep_alive: _Ignored = None
