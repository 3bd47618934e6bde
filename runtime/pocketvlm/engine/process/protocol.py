"""What travels between an engine's process and ours: frames of JSON with arrays beside it. No code travels.

A frame is a uint32 and a uint64, little-endian: the bytes of the JSON and of what follows it; then both.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from pocketvlm import errors
from pocketvlm.engine.interface import (
    EncodeProgress,
    EngineInfo,
    EngineOptions,
    Event,
    Finished,
    Generation,
    PrefillDone,
    PromptImage,
    Snapshot,
    Token,
    TokenScore,
)
from pocketvlm.messages import ImageTimings
from pocketvlm.native.grammar import Constraint
from pocketvlm.native.sampler import Sampling
from pocketvlm.pictures.images import Picture
from pocketvlm.templates.prompt import TextSpan

_HEAD = struct.Struct("<IQ")
_PARTS = ("prompt", "sampling", "constraint")  # of a generation: those that are no plain values
Frame = tuple[dict[str, Any], memoryview]


def pack(message: Mapping[str, Any], blobs: Sequence[memoryview] = ()) -> list[bytes | memoryview]:
    """A frame, in parts to be written one after another."""
    text = json.dumps(message, separators=(",", ":")).encode("ascii")
    return [_HEAD.pack(len(text), sum(blob.nbytes for blob in blobs)) + text, *blobs]


def read(stream: IO[bytes]) -> Frame | None:
    """The next frame; None where the other side has gone, be it within a frame."""
    if len(head := stream.read(_HEAD.size)) < _HEAD.size:
        return None
    size, more = _HEAD.unpack(head)
    text, blob = stream.read(size), stream.read(more)
    if len(text) < size or len(blob) < more:
        return None
    return json.loads(text), memoryview(blob)


# --- requests


def encode_generation(request: Generation) -> tuple[dict[str, Any], list[memoryview]]:
    blobs: list[memoryview] = []
    prompt: list[dict[str, Any]] = []
    for piece in request.prompt:
        if isinstance(piece, TextSpan):
            prompt.append({"text": piece.text, "special": piece.special})
            continue
        picture = piece.picture
        blobs.append(np.ascontiguousarray(picture.pixels).data.cast("B"))
        prompt.append(
            {
                "shape": picture.pixels.shape,
                "digest": picture.digest,
                "read_ms": picture.read_ms,
                "detail": piece.detail,
                "max_tokens": piece.max_tokens,
                "param": piece.param,
            }
        )
    sampling = {field.name: getattr(request.sampling, field.name) for field in fields(Sampling)}
    sampling["logit_bias"] = list(request.sampling.logit_bias.items())
    constraint = request.constraint and asdict(request.constraint)
    rest = {f.name: getattr(request, f.name) for f in fields(Generation) if f.name not in _PARTS}
    return {"prompt": prompt, "sampling": sampling, "constraint": constraint, **rest}, blobs


def decode_generation(message: Mapping[str, Any], blob: memoryview) -> Generation:
    prompt: list[TextSpan | PromptImage] = []
    at = 0
    for piece in message["prompt"]:
        if "text" in piece:
            prompt.append(TextSpan(**piece))
            continue
        height, width, channels = piece["shape"]
        size = height * width * channels
        pixels = np.frombuffer(blob[at : at + size], np.uint8).reshape(height, width, channels)
        at += size
        picture = Picture(pixels, piece["digest"], piece["read_ms"])
        prompt.append(PromptImage(picture, piece["detail"], piece["max_tokens"], piece["param"]))
    sampling = dict(message["sampling"])
    sampling["logit_bias"] = dict(sampling["logit_bias"])
    constraint = message["constraint"] and Constraint(**message["constraint"])
    rest = {name: value for name, value in message.items() if name not in _PARTS}
    return Generation(tuple(prompt), Sampling(**sampling), constraint=constraint, **rest)


def encode_snapshot(snapshot: Snapshot) -> tuple[dict[str, Any], list[memoryview]]:
    states = [] if snapshot.state is None else [snapshot.state, *(state for _, state in snapshot.checkpoints)]
    marks = [count for count, _ in snapshot.checkpoints]
    told = {"keys": snapshot.keys, "ends": snapshot.ends, "marks": marks, "sizes": [len(state) for state in states]}
    return told, [state.data for state in states]


def decode_snapshot(message: Mapping[str, Any], blob: memoryview) -> Snapshot:
    ends = accumulate(message["sizes"], initial=0)
    states = [np.frombuffer(blob[at:end], np.uint8) for at, end in pairwise(ends)]
    marks = tuple(zip(message["marks"], states[1:], strict=True))
    return Snapshot(tuple(message["keys"]), tuple(message["ends"]), states[0] if states else None, marks)


# --- events and errors


def encode_event(event: Event | BaseException) -> dict[str, Any]:
    """One key, the kind of event; bytes become characters of the same number."""
    if isinstance(event, Token):
        score = event.score
        scored = score and [score.logprob, [[id, data.decode("latin-1"), value] for id, data, value in score.top]]
        return {"token": [event.id, event.data.decode("latin-1"), scored, event.drafted, event.accepted, event.ms]}
    if isinstance(event, EncodeProgress):
        return {"progress": [event.done, event.total]}
    if isinstance(event, PrefillDone):
        return {"started": {**asdict(event), "images": [image.model_dump() for image in event.images]}}
    if isinstance(event, Finished):
        return {"finished": event.reason}
    return {"error": encode_error(event)}


def decode_event(message: Mapping[str, Any], blob: memoryview) -> Event | Snapshot | Exception:
    kind, value = next(iter(message.items()))
    if kind == "snapshot":
        return decode_snapshot(value, blob)
    if kind == "token":
        id, data, scored, drafted, accepted, ms = value
        score = None
        if scored is not None:
            score = TokenScore(
                scored[0], tuple((token, text.encode("latin-1"), logprob) for token, text, logprob in scored[1])
            )
        return Token(id, data.encode("latin-1"), score, drafted, accepted, ms)
    if kind == "progress":
        return EncodeProgress(*value)
    if kind == "started":
        images = tuple(map(ImageTimings.model_validate, value["images"]))
        return PrefillDone(**{**value, "images": images})
    if kind == "finished":
        return Finished(value)
    return decode_error(value)


def encode_error(error: BaseException) -> dict[str, Any]:
    """Errors of ours by name, with what they carry; others as an EngineError that says what they were."""
    if not isinstance(error, errors.PocketVLMError):
        return {"name": "EngineError", "arguments": [f"the engine failed: {error!r}"]}
    arguments: list[Any] = [str(error)]
    if isinstance(error, errors.RequestError):
        arguments = [error.message, error.param]
    elif isinstance(error, errors.FileError):
        arguments = [error.message, None if error.path is None else str(error.path)]
    return {"name": type(error).__name__, "arguments": arguments}


def decode_error(message: Mapping[str, Any]) -> Exception:
    kind = getattr(errors, str(message["name"]), None)
    if not (isinstance(kind, type) and issubclass(kind, errors.PocketVLMError)):
        kind = errors.EngineError
    found: Exception = kind(*message["arguments"])
    return found


# --- an engine


def encode_info(info: EngineInfo) -> dict[str, Any]:
    return {**asdict(info), "end_tokens": sorted(info.end_tokens)}


def decode_info(message: Mapping[str, Any]) -> EngineInfo:
    return EngineInfo(**{**message, "end_tokens": frozenset(message["end_tokens"])})


def encode_engine(
    model: Path, mmproj: Path | None, onnx: Path | None, *, name: str, fingerprint: str, options: EngineOptions
) -> dict[str, Any]:
    """What an engine is made from; relative paths become absolute."""
    files = [None if path is None else str(path.absolute()) for path in (model, mmproj, onnx)]
    return {"files": files, "name": name, "fingerprint": fingerprint, "options": asdict(options)}


def decode_engine(message: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an engine."""
    model, mmproj, onnx = (None if path is None else Path(path) for path in message["files"])
    named = {"name": message["name"], "fingerprint": message["fingerprint"]}
    return {"model": model, "mmproj": mmproj, "onnx": onnx, **named, "options": EngineOptions(**message["options"])}
