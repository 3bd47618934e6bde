"""Write the bundle of a checkpoint that is not downloaded: meta files, with real headers and sizes but no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from pocketvlm.errors import ConversionError
from pocketvlm.files.locate import Located
from pocketvlm.native.quantize import planned_types
from pocketvlm_converters.catalog.entry import Entry, Types
from pocketvlm_converters.catalog.meta_checkpoint import MetaCheckpoint
from pocketvlm_converters.export_parts import write_encoder
from pocketvlm_converters.families import find_family
from pocketvlm_converters.family import Family
from pocketvlm_converters.gguf import write_language, write_meta_language, write_projector
from pocketvlm_converters.quantization.quantize import FLOAT_TYPES, bundle_types
from pocketvlm_converters.weights import Part, vocabulary_size

# Bytes of a GGUF file for each token of a vocabulary: text, type and merge with byte-level BPE ("bytes"); text, type
# and score with SentencePiece ("characters"). Measured on vocabularies of 32,000 to 152,000 tokens.
_VOCABULARY_SIZE = {"bytes": 39, "characters": 23}


@dataclass(frozen=True)
class CatalogModel:
    """A catalogue entry as its family reads it."""

    entry: Entry
    family: Family
    language: Part
    vision: Part

    @property
    def parameters(self) -> int:
        return sum(prod(weight.tensor.shape) for part in (self.language, self.vision) for weight in part.weights)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return vocabulary_size(self.language)


def model_of(entry: Entry) -> CatalogModel:
    """Return the model of an entry. Raises CheckpointError if no family converts its configuration."""
    family = find_family(MetaCheckpoint(entry))
    return CatalogModel(entry, family, family.language(), family.projector())


def write_bundle(model: CatalogModel, types: Types, folder: Path) -> Located:
    """Write the meta bundle of a model to `folder`.

    The vocabulary is a hole, too. Without the onnx package the ONNX encoder is left out if there is an mmproj file.
    """
    kind, projector, graph = bundle_types(types.quantize, types.mmproj, types.onnx)
    path, original = folder / f"model-{kind}.gguf", folder / "original.gguf"
    language = replace(model.language, metadata={**model.language.metadata, "tokenizer.ggml.model": "no_vocab"})
    if kind in FLOAT_TYPES:
        write_language(language, path, FLOAT_TYPES[kind], meta=True)
    else:
        write_language(language, original, None, meta=True)
        write_meta_language(language, path, planned_types(original, kind))
        original.unlink()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + _VOCABULARY_SIZE[model.entry.tokenizer] * model.vocabulary_size)
    mmproj = onnx = None
    if projector:
        mmproj = folder / f"mmproj-{projector}.gguf"
        write_projector(model.vision, mmproj, projector, meta=True)
    if graph:
        onnx = folder / f"vision-{graph}.onnx"
        try:
            write_encoder(model.family, model.vision, onnx, graph, meta=True)
        except ConversionError:
            if mmproj is None:
                raise
            onnx = None
    return Located(model.entry.id, path, mmproj, onnx, "")
