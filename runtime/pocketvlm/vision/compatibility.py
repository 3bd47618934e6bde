"""Whether files belong together, from their headers alone.

libmtmd and libllama abort the process on some wrong pairs, so everything that can be read is compared first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pocketvlm.errors import ModelFormatError, ModelNotFoundError, PairingError, RequestError
from pocketvlm.files.gguf_header import PROJECTOR_TYPES, GGUFHeader, projector_type, read_header
from pocketvlm.files.onnx_header import OnnxHeader, read_onnx
from pocketvlm.vision import families
from pocketvlm.vision.family import Family
from pocketvlm.vision.onnx import INPUT, OUTPUT

EncoderChoice = Literal["auto", "gguf", "onnx"]
WANTED: tuple[EncoderChoice, ...] = ("auto", "gguf", "onnx")
_FLOAT, _UINT8 = 1, 2  # TensorProto's numbers
_SOURCE = "pocketvlm.weights_sha256"
_LAST_BIAS = "mm.2.bias"


@dataclass(frozen=True)
class CheckedFiles:
    """Files that belong together. `projector` and `encoder` are None where there is none or it is not wanted."""

    model: GGUFHeader
    projector: GGUFHeader | None
    encoder: OnnxHeader | None


def check_files(model: Path, mmproj: Path | None, onnx: Path | None, wanted: EncoderChoice = "auto") -> CheckedFiles:
    """Read the headers of what may be used. Raises ModelError leaves naming the file that is wrong.

    ModelNotFoundError where the `wanted` encoder is not among the files, RequestError for one that nobody knows.
    """
    if wanted not in WANTED:
        raise RequestError(f"{wanted!r} is unknown; known: {', '.join(WANTED)}", "vision")
    header = check_language_model(model)
    for kind, path, name in (("gguf", mmproj, "an mmproj (GGUF)"), ("onnx", onnx, "an ONNX")):
        if kind == wanted and path is None:
            raise ModelNotFoundError(f"has no file beside it for {name} vision encoder, which was asked for", model)
    return CheckedFiles(
        header,
        check_projector(mmproj, header) if mmproj and wanted != "onnx" else None,
        check_encoder(onnx, header) if onnx and wanted != "gguf" else None,
    )


def check_language_model(path: Path) -> GGUFHeader:
    """A complete GGUF that is a language model; ModelFormatError otherwise."""
    header = read_header(path)
    if header.is_projector:
        raise ModelFormatError("is a multimodal projector (mmproj), not a language model; give it as mmproj", path)
    if not header.architecture or not header.tensors:
        raise ModelFormatError("is a GGUF file without a model in it", path)
    layers = header.metadata.get(f"{header.architecture}.block_count")
    if isinstance(layers, int) and 0 < layers <= (deep := _deepstack(header)):
        # An assert of libllama: in its last layer it computes some tokens only, where a picture's rows are whole.
        raise ModelFormatError(f"has {deep} deepstack layers of {layers}, at least one too many", path)
    return header


def check_projector(path: Path, model: GGUFHeader) -> GGUFHeader:
    """A complete GGUF that is a projector for vision, as wide as the language model; else a typed error."""
    header = read_header(path)
    if not header.is_projector:
        raise ModelFormatError("is a language model, not a multimodal projector (mmproj)", path)
    if any(not isinstance(header.metadata.get(key, ""), str) for key in PROJECTOR_TYPES):  # an assert of libmtmd
        raise ModelFormatError("names its projector by something that is not text", path)
    if not header.metadata.get("clip.has_vision_encoder", True):
        raise PairingError("this projector does not take pictures", path)
    width, more = header.metadata.get("clip.vision.projection_dim"), deepstack_projectors(header.metadata)
    bias = next((tensor for tensor in header.tensors if tensor.name == _LAST_BIAS), None)
    if bias is not None and projector_type(header.metadata) == "mlp":
        width = bias.shape[0]  # as libmtmd does: older converters wrote another width under the key
    if isinstance(width, int):
        _check_width(width * (1 + (more or 0)), model, path, deepstack=more is not None)
    return header


def check_encoder(path: Path, model: GGUFHeader) -> OnnxHeader:
    """A complete ONNX vision encoder of a known family, made for this language model; else a typed error."""
    header = read_onnx(path)
    family = family_of(header.metadata, path)
    if family is None:
        raise ModelFormatError(
            "is not a vision encoder of a known family; `pocketvlm convert --onnx` makes one from a checkpoint", path
        )
    given = [(value.name, value.type, len(value.shape)) for value in (*header.inputs, *header.outputs)]
    if given != [(INPUT, _UINT8, 4), (OUTPUT, _FLOAT, 3)]:
        raise ModelFormatError(f"is not from uint8 {INPUT} to float32 {OUTPUT}, but {given}", path)
    _, tokens, width = header.outputs[0].shape
    if tokens not in (None, family.tile_tokens):
        raise ModelFormatError(f"gives {tokens} tokens a tile, its family {family.tile_tokens}", path)
    if width is not None:
        _check_width(width, model, path)
    mine, other = header.metadata.get(_SOURCE), model.metadata.get(_SOURCE)
    if mine is not None and other is not None and mine != other:
        raise PairingError(f"was made from another checkpoint than {model.path.name}: they are not a pair", path)
    return header


def family_of(metadata: dict[str, Any], path: Path) -> Family | None:
    """The family that a projector's metadata names; ModelFormatError where what it needs is not there, or nonsense."""
    found = named_family(metadata, path)
    return found[1] if found else None


def named_family(metadata: dict[str, Any], path: Path) -> tuple[str, Family] | None:
    """Likewise, with the family's name."""
    try:
        return families.find(metadata)
    except KeyError as error:
        raise ModelFormatError(f"its metadata is incomplete: {error}", path) from None
    except ValueError as error:
        raise ModelFormatError(f"its metadata is wrong: {error}", path) from None


def deepstack_projectors(metadata: Mapping[str, Any]) -> int | None:
    """How many more projectors an encoder has after earlier layers; None where libmtmd alone knows."""
    found = metadata.get("clip.vision.is_deepstack_layers")
    return sum(map(bool, found)) if isinstance(found, list) else None


def _check_width(width: int, model: GGUFHeader, path: Path, *, deepstack: bool = True) -> None:
    """An embedding is as wide as that of a token; with `deepstack`, what the first layers add is in it."""
    text = model.metadata.get(f"{model.architecture}.embedding_length")
    if not isinstance(text, int):
        return
    wanted = text * (1 + _deepstack(model)) if deepstack else text
    if width != wanted:
        raise PairingError(
            f"its embeddings are {width} wide, {model.path.name} takes {wanted}: they are not a pair", path
        )


def _deepstack(model: GGUFHeader) -> int:
    """How many layers add something of their own to a picture's embeddings (arXiv 2406.04334)."""
    found = model.metadata.get(f"{model.architecture}.n_deepstack_layers")
    return found if isinstance(found, int) else 0
