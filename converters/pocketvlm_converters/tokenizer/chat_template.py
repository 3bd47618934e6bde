"""The chat template of a checkpoint, which may have several."""

from __future__ import annotations

from typing import Any

from pocketvlm_converters.checkpoint.folder import Checkpoint

# As transformers' processors look for it; tokenizers alone read the last one.
_PLACES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")


def chat_template(checkpoint: Checkpoint) -> tuple[str | None, tuple[str, ...]]:
    """Return the chat template, None if there is none, and notes for the user about files with different ones."""
    templates = {place: template for place in _PLACES if (template := _read(checkpoint, place))}
    if not templates:
        return None, ()
    used, template = next(iter(templates.items()))
    others = [place for place, other in templates.items() if other.strip() != template.strip()]
    notes = []
    if others:
        notes.append(f"the chat template is that of {used}, as in transformers; {', '.join(others)} has another one")
    for adapter in checkpoint.adapters:
        if (other := adapter.chat_template) and other.strip() != template.strip():
            notes.append(f"the chat template is that of the checkpoint; the adapter {adapter.name} has another one")
    return template, tuple(notes)


def _read(checkpoint: Checkpoint, place: str) -> str | None:
    if place.endswith(".jinja"):
        return checkpoint.text(place)
    template: Any = checkpoint.json(place, optional=True).values.get("chat_template")
    if isinstance(template, list):  # several templates, each with a name
        template = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None
