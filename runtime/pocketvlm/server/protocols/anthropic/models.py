"""What Anthropic's clients read of a model, and of a list of models, in addition to OpenAI's fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from pocketvlm.server.served_model import ServedModel

MODEL_SCHEMA: dict[str, Any] = {
    "type": {"const": "model"},
    "display_name": {"type": "string"},
    "created_at": {"type": "string", "format": "date-time"},
    "lifecycle": {"const": "active"},
    "max_input_tokens": {"type": "integer"},
    "max_tokens": {"type": "integer"},
}
LIST_SCHEMA: dict[str, Any] = {
    "has_more": {"const": False},
    "first_id": {"type": "string"},
    "last_id": {"type": "string"},
}


def model_fields(model: ServedModel) -> dict[str, object]:
    return {
        "type": "model",
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(model.created, timezone.utc).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": model.facts.context_size,
        "max_tokens": model.facts.context_size,
    }


def list_fields(cards: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Return the fields of a list that has all models on its only page."""
    return {"has_more": False, "first_id": cards[0]["id"], "last_id": cards[-1]["id"]}
