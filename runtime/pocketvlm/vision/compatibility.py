"""Check from their headers that a model, a projector and a vision encoder belong together.

libmtmd and libllama abort the process on some wrong pairs, so everything that the headers state is compared first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pocketvlm.errors import ModelFormatError, ModelNotFoundError, PairingError, RequestError, quoted, shortened
from pocketvlm.files.gguf_decoder import check_decoder, check_known_decoder
from pocketvlm.files.gguf_header import GGUFHeader, projector_type, read_header
from pocketvlm.files.gguf_pieces import read_model_header
from pocketvlm.files.gguf_vocabulary import MODEL as TOKENIZER
from pocketvlm.files.gguf_vocabulary import TOKENIZERS, check_vocabulary
from pocketvlm.files.onnx_header import OnnxHeader, read_onnx
from pocketvlm.vision import families
from pocketvlm.vision.encoder_tensors import check_values
from pocketvlm.vision.family import Family
from pocketvlm.vision.onnx import INPUT, OUTPUT

EncoderChoice = Literal["auto", "gguf", "onnx"]
WANTED: tuple[EncoderChoice, ...] = ("auto", "gguf", "onnx")
_FLOAT, _UINT8 = 1, 2  # TensorProto.DataType
_CHANNELS = (3, 6)  # of a pixel: in one frame, or in two that an encoder gets together
_SOURCE = "pocketvlm.weights_sha256"
_LONGEST_LIST = 1000
_LAST_BIAS = "mm.2.bias"


@dataclass(frozen=True)
class CheckedFiles:
    """Files that belong together. `projector` or `encoder` is None where it is missing or not wanted.

    `doubt` says what could not be checked, or differs from what is known, in files that others wrote: whether native
    code can load them must be tried in a process of its own.
    """

    model: GGUFHeader
    projector: GGUFHeader | None
    encoder: OnnxHeader | None
    doubt: ModelFormatError | None = None

    @property
    def picture_metadata(self) -> dict[str, Any]:
        """The metadata of which `families.find` makes the family again, as JSON can have them; {} for unknown ones."""
        header = header_of_pictures(self.projector, self.encoder)
        if header is None or family_of(header.metadata, header.path) is None:
            return {}
        return {
            key: value
            for key, value in header.metadata.items()
            if key.startswith(("clip.", "pocketvlm.")) and _is_plain(value)
        }


def header_of_pictures(projector: GGUFHeader | None, encoder: OnnxHeader | None) -> GGUFHeader | OnnxHeader | None:
    """Return the header that says how pictures are prepared, also where the other file encodes them."""
    return encoder or projector


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _LONGEST_LIST and all(_is_plain(item) for item in value)
    if isinstance(value, str):
        return value.isascii()
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def check_files(model: Path, mmproj: Path | None, onnx: Path | None, wanted: EncoderChoice = "auto") -> CheckedFiles:
    """Read and check the headers of the files that may be used.

    Raises subclasses of ModelError that name the wrong file, ModelNotFoundError where there is no file for the `wanted`
    encoder, and RequestError where `wanted` is unknown.
    """
    if wanted not in WANTED:
        raise RequestError(f"{quoted(wanted)} is unknown; known: {', '.join(WANTED)}", "vision")
    header = check_language_model(model)
    for kind, path, name in (("gguf", mmproj, "an mmproj (GGUF)"), ("onnx", onnx, "an ONNX")):
        if kind == wanted and path is None:
            raise ModelNotFoundError(f"has no file next to it for {name} vision encoder, which was requested", model)
    projector = check_projector(mmproj, header) if mmproj and wanted != "onnx" else None
    encoder = check_encoder(onnx, header) if onnx and wanted != "gguf" else None
    doubt = _doubt_model(header) or (_doubt_projector(projector, header) if projector else None)
    return CheckedFiles(header, projector, encoder, doubt)


def check_language_model(path: Path) -> GGUFHeader:
    """Return the header of a complete GGUF language model. Raises ModelFormatError for any other file."""
    header = read_model_header(path)
    if header.is_projector:
        raise ModelFormatError("is a multimodal projector (mmproj), not a language model; give it as mmproj", path)
    if not header.architecture or not header.tensors:
        raise ModelFormatError("is a GGUF file without a model in it", path)
    check_decoder(header)
    check_vocabulary(header)
    return header


def check_projector(path: Path, model: GGUFHeader) -> GGUFHeader:
    """Return the header of a complete GGUF vision projector that is as wide as the language model.

    Raises ModelFormatError or PairingError.
    """
    header = read_header(path)
    if not header.is_projector:
        raise ModelFormatError("is a language model, not a multimodal projector (mmproj)", path)
    check_values(header)
    if not header.metadata.get("clip.has_vision_encoder", True):
        raise PairingError("this projector is not for pictures", path)
    width, more = header.metadata.get("clip.vision.projection_dim"), deepstack_projectors(header.metadata)
    bias = next((tensor for tensor in header.tensors if tensor.name == _LAST_BIAS), None)
    if bias is not None and projector_type(header.metadata) == "mlp":
        width = bias.shape[0]  # as libmtmd does: older converters wrote another width to projection_dim
    if isinstance(width, int):
        _check_width(width * (1 + (more or 0)), model, path, deepstack=more is not None)
    return header


def _doubt_model(header: GGUFHeader) -> ModelFormatError | None:
    """Return what could not be checked about a language model, or is unusual in it."""
    if header.architecture not in families.decoders():
        return ModelFormatError(f"has the unknown architecture {quoted(header.architecture)}", header.path)
    if (tokenizer := header.metadata[TOKENIZER]) not in TOKENIZERS:
        return ModelFormatError(f"has the unknown {TOKENIZER} {quoted(tokenizer)}", header.path)
    return _doubt(header, check_known_decoder)


def _doubt_projector(header: GGUFHeader, model: GGUFHeader) -> ModelFormatError | None:
    """Return what could not be checked about a projector, or is unusual in it."""
    if family_of(header.metadata, header.path) is None:
        return ModelFormatError(
            f"has the unknown projector type {quoted(projector_type(header.metadata))}", header.path
        )
    if header.metadata.get("clip.has_audio_encoder") or header.metadata.get("clip.has_gen_audio_encoder"):
        return ModelFormatError("has an audio encoder, which is not checked", header.path)
    return _doubt(header, lambda header: families.check(header, model))


def _doubt(header: GGUFHeader, check: Callable[[GGUFHeader], None]) -> ModelFormatError | None:
    """Return the error of a check. It is raised for a file that pocketvlm wrote, because its tensors are known."""
    try:
        check(header)
    except ModelFormatError as error:
        if _SOURCE in header.metadata:
            raise
        return error
    return None


def check_encoder(path: Path, model: GGUFHeader) -> OnnxHeader:
    """Return the header of a complete ONNX vision encoder of a known family that was made for this language model.

    Raises ModelFormatError or PairingError.
    """
    header = read_onnx(path)
    family = family_of(header.metadata, path)
    if family is None:
        raise ModelFormatError(
            "is not a vision encoder of a known family; `pocketvlm convert --onnx` makes one from a checkpoint", path
        )
    signature = [(value.name, value.type, len(value.shape)) for value in (*header.inputs, *header.outputs)]
    if signature != [(INPUT, _UINT8, 4), (OUTPUT, _FLOAT, 3)]:
        raise ModelFormatError(f"is not from uint8 {INPUT} to float32 {OUTPUT}, but has {signature}", path)
    if (channels := header.inputs[0].shape[-1]) not in _CHANNELS:
        raise ModelFormatError(f"takes pixels of {channels} channels, must be 3, or 6 for two frames", path)
    _, tokens, width = header.outputs[0].shape
    if tokens not in (None, family.tile_tokens):
        raise ModelFormatError(f"returns {tokens} tokens a tile, but its family has {family.tile_tokens}", path)
    if width is None:
        raise ModelFormatError("does not state the width of its embeddings", path)
    _check_width(width, model, path)
    source, model_source = header.metadata.get(_SOURCE), model.metadata.get(_SOURCE)
    if source is not None and model_source is not None and source != model_source:
        raise PairingError(f"was made from another checkpoint than {model.path.name}: they are not a pair", path)
    return header


def family_of(metadata: dict[str, Any], path: Path) -> Family | None:
    """Return the family of a projector's metadata, None where it is unknown.

    Raises ModelFormatError where metadata that the family needs is missing or wrong.
    """
    named = named_family(metadata, path)
    return named[1] if named else None


def named_family(metadata: dict[str, Any], path: Path) -> tuple[str, Family] | None:
    """Do the same as `family_of`, and return the family's name, too."""
    try:
        return families.find(metadata)
    except KeyError as error:
        raise ModelFormatError(f"its metadata is incomplete: {shortened(error)}", path) from None
    except ValueError as error:
        raise ModelFormatError(f"its metadata is wrong: {shortened(error)}", path) from None


def deepstack_projectors(metadata: Mapping[str, Any]) -> int | None:
    """Return the number of an encoder's additional projectors after earlier layers; None where only libmtmd knows."""
    flags = metadata.get("clip.vision.is_deepstack_layers")
    return sum(map(bool, flags)) if isinstance(flags, list) else None


def _check_width(width: int, model: GGUFHeader, path: Path, *, deepstack: bool = True) -> None:
    """Raise PairingError unless an embedding is as wide as the model's.

    With `deepstack`, an embedding includes what the first layers add.
    """
    token_width = model.metadata.get(f"{model.architecture}.embedding_length")
    if not isinstance(token_width, int):
        return
    expected = token_width * (1 + _deepstack_layers(model)) if deepstack else token_width
    if width != expected:
        raise PairingError(
            f"its embeddings are {width} wide, {model.path.name} takes {expected}: they are not a pair", path
        )


def _deepstack_layers(model: GGUFHeader) -> int:
    """Return the number of layers that add further embeddings of a picture (DeepStack, arXiv 2406.04334)."""
    layers = model.metadata.get(f"{model.architecture}.n_deepstack_layers")
    return layers if isinstance(layers, int) else 0
