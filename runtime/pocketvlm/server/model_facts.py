"""What a server says about a model that it has not loaded: from the headers of the files alone."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from pocketvlm.engine.loading.loader import context_size
from pocketvlm.errors import ModelError
from pocketvlm.files.gguf_header import GGUFHeader, read_header
from pocketvlm.files.gguf_pieces import read_model_header
from pocketvlm.files.locate import Located
from pocketvlm.files.onnx_header import read_onnx
from pocketvlm.vision.compatibility import EncoderChoice, family_of, header_of_pictures
from pocketvlm.vision.family import Family

# Ollama's words, which other clients read as well.
Capability = Literal["completion", "vision", "tools", "thinking"]
_THINKS = re.compile(r"enable_thinking|<think>|reasoning_effort|reasoning_content")


@dataclass(frozen=True)
class ModelFacts:
    """`parameters` counts the weights of the language model, `size` the bytes of all files.

    `context_length` is what the model was trained for, `context_size` what a request here has, in tokens. `modified` is
    in seconds since 1970. `fingerprint` changes when a file changes. Every model is offered tools, those whose template
    has none in words. `family` says how it sees pictures, where that is known, and `max_image_tokens` how many tokens
    of one it may take here. `knows` is from its `Scope`, if it has one.
    """

    name: str
    architecture: str
    parameters: int
    quantization: str
    size: int
    modified: float
    fingerprint: str
    context_length: int
    context_size: int
    vision: bool
    capabilities: tuple[Capability, ...]
    template: str = field(repr=False)
    family: Family | None = field(default=None, repr=False)
    max_image_tokens: int | None = None
    knows: str | None = None


def read_facts(
    located: Located,
    *,
    name: str | None = None,
    requested_context: int | None = None,
    max_image_tokens: int | None = None,
    vision_choice: EncoderChoice = "auto",
) -> ModelFacts:
    """Read the facts of a model. Raises ModelError where the language model's header cannot be read."""
    header = read_model_header(located.model)
    files = [*header.files, *filter(None, (located.mmproj, located.onnx))]
    served = context_size(header, requested_context)
    trained = header.metadata.get(f"{header.architecture}.context_length")
    template = str(header.metadata.get("tokenizer.chat_template", ""))
    vision = located.mmproj is not None or located.onnx is not None
    capabilities: dict[Capability, bool] = {
        "completion": True,
        "vision": vision,
        "tools": True,
        "thinking": _THINKS.search(template) is not None,
    }
    return ModelFacts(
        name=name or located.name,
        architecture=header.architecture,
        parameters=sum(prod(tensor.shape) for tensor in header.tensors),
        quantization=_quantization(header),
        size=sum(path.stat().st_size for path in files),
        modified=max(path.stat().st_mtime for path in files),
        fingerprint=located.fingerprint,
        context_length=trained if isinstance(trained, int) and trained else served,
        context_size=served,
        vision=vision,
        capabilities=tuple(word for word, holds in capabilities.items() if holds),
        template=template,
        family=_family(located, vision_choice),
        max_image_tokens=max_image_tokens,
        knows=located.scope.knows if located.scope else None,
    )


def _family(located: Located, vision: EncoderChoice) -> Family | None:
    """Return the family of the vision encoder. What is wrong with its file is an error of loading."""
    with suppress(ModelError, OSError):
        projector = read_header(located.mmproj) if located.mmproj and vision != "onnx" else None
        encoder = read_onnx(located.onnx) if located.onnx and vision != "gguf" else None
        header = header_of_pictures(projector, encoder)
        return family_of(dict(header.metadata), header.path) if header else None
    return None


def _quantization(header: GGUFHeader) -> str:
    """Return the name of the file's type, such as Q4_K_M, or else the type of most of its weights."""
    from gguf.constants import LlamaFileType

    with suppress(ValueError):  # unknown, or no number
        name = str(LlamaFileType(header.metadata.get("general.file_type")).name)
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type_name] += tensor.n_bytes
    return sizes.most_common(1)[0][0] if sizes else ""
