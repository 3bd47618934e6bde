"""Fields of other servers that change nothing here. They are accepted, because clients send them to every server."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from pocketvlm.messages.base import Frozen

Ignored = Annotated[Any, Field(description="Accepted and ignored.", repr=False)]


class IgnoredFields(Frozen):
    """Hints, accounting and storage of services. A field that would change an answer does not belong here."""

    # OpenAI
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None
    prediction: Ignored = None
    verbosity: Ignored = None
    web_search_options: Ignored = None
    moderation: Ignored = None
    audio: Ignored = None  # the voice of an answer that `modalities` asks for
    # llama.cpp
    cache_prompt: Ignored = None
    id_slot: Ignored = None
    n_keep: Ignored = None
    timings_per_token: Ignored = None
    return_progress: Ignored = None
    # vLLM
    priority: Ignored = None
    request_id: Ignored = None
    cache_salt: Ignored = None
    # Ollama: how it loads a model
    keep_alive: Ignored = None
    num_ctx: Ignored = None
    num_batch: Ignored = None
    num_gpu: Ignored = None
    num_keep: Ignored = None
    num_thread: Ignored = None
    use_mmap: Ignored = None
    use_mlock: Ignored = None
    # OpenRouter: where it sends a request
    provider: Ignored = None
    route: Ignored = None
    usage: Ignored = None
