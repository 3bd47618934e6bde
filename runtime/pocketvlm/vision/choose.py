"""Which vision serves a pair of files, after checking that they are a pair.

libmtmd and libllama abort the process on some wrong pairs, so everything that can be read is compared first.
"""

from __future__ import annotations

from pathlib import Path

from pocketvlm.errors import ModelFormatError, PairingError
from pocketvlm.gguf_header import GGUFHeader, read_header
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm.vision import families
from pocketvlm.vision.encoder import Vision
from pocketvlm.vision.family import Family
from pocketvlm.vision.mtmd import MtmdEncoder, NativeVision
from pocketvlm.vision.tiled import FamilyVision


def check_language_model(path: Path) -> GGUFHeader:
    """A complete GGUF that is a language model; ModelFormatError otherwise."""
    header = read_header(path)
    if header.is_projector:
        raise ModelFormatError("is a multimodal projector (mmproj), not a language model; give it as mmproj", path)
    if not header.architecture or not header.tensors:
        raise ModelFormatError("is a GGUF file without a model in it", path)
    return header


def check_projector(path: Path, model: GGUFHeader) -> GGUFHeader:
    """A complete GGUF that is a projector for vision, as wide as the language model; else a typed error."""
    header = read_header(path)
    if not header.is_projector:
        raise ModelFormatError("is a language model, not a multimodal projector (mmproj)", path)
    if not header.metadata.get("clip.has_vision_encoder", True):
        raise PairingError("this projector does not take pictures", path)
    width = header.metadata.get("clip.vision.projection_dim")
    wanted = model.metadata.get(f"{model.architecture}.embedding_length")
    if width is not None and wanted is not None and width != wanted:
        raise PairingError(
            f"its embeddings are {width} wide, {model.path.name} takes {wanted}: they are not a pair", path
        )
    return header


def open_vision(model: Model, projector: GGUFHeader, *, threads: int) -> Vision:
    """The vision for a pair whose headers were checked. PairingError where the vocabulary lacks a control token."""
    found = families.find(projector.metadata)
    if found is None:
        return NativeVision(Mtmd(projector.path, model, threads=threads), model.n_vocab)
    _, family = found
    _check_vocabulary(model, family, projector.path)
    mtmd = Mtmd(projector.path, model, threads=threads, tile_tokens=family.tile_tokens)
    return FamilyVision(family, MtmdEncoder(mtmd), lambda text: model.tokenize(text, special=True), mrope=model.mrope)


def _check_vocabulary(model: Model, family: Family, path: Path) -> None:
    lacking = [token for token in family.control_tokens() if len(model.tokenize(token, special=True)) != 1]
    if lacking:
        named = ", ".join(repr(token) for token in lacking[:4])
        raise PairingError(
            f"the vocabulary of {model.path.name} lacks {named}, which this projector needs: they are not a pair",
            path,
        )
