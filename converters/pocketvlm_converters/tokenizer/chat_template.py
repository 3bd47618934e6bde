"""The chat template of a checkpoint, which may have several."""

from __future__ import annotations

from typing import Any

from pocketvlm_converters.checkpoint.folder import Checkpoint

# As transformers' processors look for it; tokenizers alone read the last one.
_PLACES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")


def chat_template(checkpoint: Checkpoint) -> tuple[str | None, tuple[str, ...]]:
    """Return the chat template, None if there is none, and a note for the user if files have different ones."""
    templates = {place: template for place in _PLACES if (template := _read(checkpoint, place))}
    if not templates:
        return None, ()
    used, template = next(iter(templates.items()))
    others = [place for place, other in templates.items() if other.strip() != template.strip()]
    if not others:
        return template, ()
    return template, (f"the chat template is that of {used}, as in transformers; {', '.join(others)} has another one",)


def _read(checkpoint: Checkpoint, place: str) -> str | None:
    if place.endswith(".jinja"):
        return checkpoint.text(place)
    template: Any = checkpoint.json(place, optional=True).values.get("chat_template")
    if isinstance(template, list):  # several templates, each with a name
        template = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None
