"""What to ask a model so that it reads a page, and how its notation becomes Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketvlm.messages import Detail
from pocketvlm.reading.notation import markup

_SCHEMA_PROMPT = "Read this page and write what it says as JSON, by this JSON Schema:\n{schema}"


@dataclass(frozen=True)
class Preset:
    """How one kind of model reads a page.

    The page comes first, then `prompt`; an empty one leaves the page alone. `schema_prompt` is used where a schema is
    given, with `{schema}` and `{fields}`, the names of its properties. `names` matches the name of a model of this
    kind, and `mark` is a control token that only such models have. `detail`, `max_tokens` and `max_image_tokens` are
    those of the request, unless the caller chooses others; `fields` are other fields of it, for sampling and for
    notations of control tokens. `raw`: the model was trained without a chat template, on the page and the prompt alone.
    """

    name: str
    prompt: str
    names: re.Pattern[str] | None = None
    mark: str | None = None
    schema_prompt: str = _SCHEMA_PROMPT
    detail: Detail = "auto"
    max_tokens: int | None = None
    max_image_tokens: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False
    to_markdown: Callable[[str], str] = markup.markdown

    def question(self, prompt: str | None, schema: Mapping[str, Any] | None) -> str:
        """Return the text after the page; `prompt` overrides that of the preset."""
        if prompt is None and schema is not None:
            prompt = self.schema_prompt.replace("{schema}", json.dumps(schema, ensure_ascii=False)).replace(
                "{fields}", ", ".join(f"'{name}'" for name in schema.get("properties", {}))
            )
        text = self.prompt if prompt is None else prompt
        return f"\n{text}" if self.raw and text else text
