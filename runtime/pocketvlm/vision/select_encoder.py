"""Which encoder sees for a language model: the one that is there, or of several the one that is fastest here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pocketvlm.errors import PairingError
from pocketvlm.files.bundle import sha256_of
from pocketvlm.files.gguf_header import GGUFHeader
from pocketvlm.files.onnx_header import OnnxHeader
from pocketvlm.native import library
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm.system.machine import physical_cores, processor
from pocketvlm.system.timing import RepeatedTiming
from pocketvlm.vision import encoder_speeds, onnx
from pocketvlm.vision.compatibility import CheckedFiles, family_of
from pocketvlm.vision.disk_cache import DiskCache
from pocketvlm.vision.dynamic_size import DynamicSize
from pocketvlm.vision.embedding_cache import EmbeddingCache
from pocketvlm.vision.encoder import Vision, VisionEncoder
from pocketvlm.vision.encoder_speeds import EncoderSpeed
from pocketvlm.vision.family import RGB, Family, PicturePlan
from pocketvlm.vision.mtmd import MtmdEncoder, NativeVision
from pocketvlm.vision.providers import CPU, devices_for
from pocketvlm.vision.tiled import FamilyVision

_log = logging.getLogger(__name__)
REVISION = 2  # of what is computed from the same tile with the same files; raised with a mend, so that kept files go
_LONG = 3.0  # seconds: a tile is encoded again, to see past the first run's own cost
_MERGES = ("projector.scale_factor", "spatial_merge_size")  # patches along the edge of what becomes a token
_EDGE = 224  # pixels of the tile that encoders are measured with, unless the family wants another size


@dataclass(frozen=True)
class Candidate:
    """An encoder that could be used. `key` names file and device for the memory, `open` takes threads.

    `files` hold what it computes with. `on_cpu`: with threads of this process.
    """

    key: str
    name: str
    open: Callable[[int], VisionEncoder]
    files: tuple[Path, ...] = ()
    on_cpu: bool = True


def open_vision(
    model: Model,
    checked: CheckedFiles,
    *,
    threads: int | None = None,
    device: str = "auto",
    gpu: int | None = None,
    cache_size: int = 0,
    cache_files: DiskCache | None = None,
) -> Vision | None:
    """The vision for files that were checked; None where there is no encoder.

    `threads` None: what measures best. More than the physical cores of this process are never used. `device` is where
    onnxruntime runs, `gpu` the number of ggml's device for libmtmd, None its CPU. Embeddings are kept within
    `cache_size` bytes, and in `cache_files`. Raises PairingError where the vocabulary lacks a control token,
    NativeLibraryError for a device that is not there.
    """

    def cache_of(key: str, files: Sequence[Path]) -> EmbeddingCache:
        encoder = f"{REVISION} {processor()} {_libraries(gpu)} {key} {[*map(sha256_of, files)]}" if cache_files else ""
        return EmbeddingCache(cache_size, width=model.n_embd_inp, files=cache_files, encoder=encoder)

    most = min(threads or physical_cores(), physical_cores())
    family, candidates = encoders(model, checked, device=device, gpu=gpu)
    if family is None:
        if checked.projector is None:
            return None
        mtmd = Mtmd(checked.projector.path, model, threads=most, device=gpu)
        return NativeVision(mtmd, model.n_vocab, cache_of("", [checked.projector.path]))
    tile = partial(_tile, family)
    best, count = select_encoder(candidates, tile, device_name(threads, gpu), _counts(most, threads is not None))
    cache = cache_of(best.key, best.files)
    return FamilyVision(family, best.open(count), mrope=model.mrope, cache=cache)


def time_encoders(
    model: Model, checked: CheckedFiles, *, threads: int | None = None, device: str = "auto", gpu: int | None = None
) -> dict[str, EncoderSpeed]:
    """How long each encoder takes for the tile that they are compared with, by the name of its file.

    As remembered, else measured now and remembered; also where that was done on a busy machine.
    """
    family, candidates = encoders(model, checked, device=device, gpu=gpu)
    if family is None:
        return {}
    most = min(threads or physical_cores(), physical_cores())
    name = device_name(threads, gpu)
    known = encoder_speeds.recall(name)
    if not all(candidate.key in known and known[candidate.key].steady for candidate in candidates):
        known = _measure(candidates, _tile(family), _counts(most, threads is not None))
        encoder_speeds.remember(name, known)
    found = sorted((known[candidate.key] for candidate in candidates), key=lambda speed: -speed.seconds)
    return {speed.name.split(",")[0]: speed for speed in found}


def measured_tile(family: Family) -> PicturePlan:
    """The tile that encoders are compared with."""
    return family.plan((_EDGE, _EDGE), "low", None)


def tile_patches(family: Family | None, plan: PicturePlan | None, metadata: Mapping[str, object]) -> int:
    """Patches of a picture's tile; 0 where its metadata does not tell."""
    patch, edge = (metadata.get(f"clip.vision.{key}") for key in ("patch_size", "image_size"))
    if not isinstance(patch, int) or not isinstance(edge, int) or patch < 1:
        return 0
    if plan and isinstance(family, DynamicSize):
        return plan.used[0] * plan.used[1] // patch**2
    of_square = (edge // patch) ** 2
    merge = next((m for key in _MERGES if isinstance(m := metadata.get(f"clip.vision.{key}"), int)), None)
    if plan and family and merge and family.tile_tokens * merge**2 != of_square:  # tiles are not of one size
        return round(merge**2 * plan.tokens / plan.tiles)
    return of_square


def encoders(
    model: Model, checked: CheckedFiles, *, device: str, gpu: int | None
) -> tuple[Family | None, list[Candidate]]:
    """The family of the pictures and who could encode them; none where the family is not known."""
    families: list[Family] = []
    candidates: list[Candidate] = []
    if (encoder := checked.encoder) is not None:
        candidates += [
            Candidate(
                f"{encoder_speeds.file_hash(encoder.path)}:{where}",
                f"{encoder.path.name}, onnxruntime, {where}",
                partial(_open_onnx, encoder, model, where),
                (encoder.path, *encoder.data_files),
                where == CPU,
            )
            for where in devices_for(device, onnx.runtime().get_available_providers())
        ]
        families.append(_known(model, encoder.metadata, encoder.path))
    if (projector := checked.projector) is not None:
        family = family_of(projector.metadata, projector.path)
        if family is not None:
            families.append(_known(model, projector.metadata, projector.path))
            opened = partial(_open_mtmd, projector, model, family, gpu)
            named = f"{projector.path.name}, libmtmd"
            candidates.append(
                Candidate(encoder_speeds.file_hash(projector.path), named, opened, (projector.path,), gpu is None)
            )
    if encoder is not None and any(family != families[0] for family in families):
        raise PairingError("prepares pictures otherwise than the mmproj beside it: they are not a pair", encoder.path)
    return (families[0] if families else None), candidates


def select_encoder(
    candidates: Sequence[Candidate], tile: Callable[[], RGB], device: str, counts: Sequence[int]
) -> tuple[Candidate, int]:
    """The fastest candidate on this device, and its threads: as remembered, else measured on `tile` and remembered.

    `counts` are the numbers of threads to try, the likeliest first; the others are tried with the fastest only.
    """
    known = encoder_speeds.recall(device)
    if len(candidates) > 1 and any(candidate.key not in known for candidate in candidates):
        known = _measure(candidates, tile(), counts)
        encoder_speeds.remember(device, known)
    best = min(candidates, key=lambda c: known[c.key].seconds if c.key in known else 0.0)
    return best, min(known[best.key].threads, max(counts)) if best.key in known else counts[0]


def device_name(threads: int | None, gpu: int | None = None) -> str:
    """What a measurement holds for: the processor, its share for us, and the libraries."""
    count = f"{threads} threads" if threads else f"{physical_cores()} cores"
    return f"{processor()}, {count}, {_libraries(gpu)}"


def _libraries(gpu: int | None) -> str:
    llama = f"{library.build().label}{'' if gpu is None else f' on {library.devices()[gpu].name}'}"
    return f"{llama}, onnxruntime {onnx.version()}"


def _measure(candidates: Sequence[Candidate], tile: RGB, counts: Sequence[int]) -> dict[str, EncoderSpeed]:
    _log.info("measuring %d vision encoders, once on this device", len(candidates))
    found: dict[str, EncoderSpeed] = {}

    def time_one(candidate: Candidate, threads: int) -> None:
        encoder = candidate.open(threads)
        try:
            takes = RepeatedTiming(threads if candidate.on_cpu else None, enough=_LONG)
            while takes.wanted:
                takes.run(lambda: encoder.encode_tile(tile))
        finally:
            encoder.close()
        seconds = takes.seconds
        _log.info("%s, %d threads: %.3f s a tile", candidate.name, threads, seconds)
        if candidate.key not in found or seconds < found[candidate.key].seconds:
            found[candidate.key] = EncoderSpeed(
                name=candidate.name, threads=threads, seconds=seconds, steady=takes.steady
            )

    for candidate in candidates:
        time_one(candidate, counts[0])
    fastest = min(candidates, key=lambda candidate: found[candidate.key].seconds)
    for threads in counts[1:]:
        time_one(fastest, threads)
    return found


def _counts(most: int, exactly: bool) -> tuple[int, ...]:
    return (most,) if exactly or most == 1 else (most, most // 2)


def _tile(family: Family) -> RGB:
    """A tile of noise: an encoder takes as long for it as for a photo. Small, where a family's tiles have any size."""
    picture = np.random.default_rng(0).integers(0, 256, (_EDGE, _EDGE, 3), dtype=np.uint8)
    return family.tiles(picture, measured_tile(family))[0]


def _open_onnx(header: OnnxHeader, model: Model, device: str, threads: int) -> VisionEncoder:
    encoder = onnx.OnnxEncoder(header, threads=threads, device=device)
    if encoder.width != model.n_embd_inp:  # libllama would read out of bounds
        raise PairingError(
            f"its embeddings are {encoder.width} wide, {model.path.name} takes {model.n_embd_inp}: they are not a pair",
            header.path,
        )
    return encoder


def _open_mtmd(header: GGUFHeader, model: Model, family: Family, gpu: int | None, threads: int) -> VisionEncoder:
    mtmd = Mtmd(header.path, model, threads=threads, tile_tokens=family.tile_tokens, device=gpu)
    return MtmdEncoder(mtmd, header, family)


def _known(model: Model, metadata: dict[str, object], path: Path) -> Family:
    family = family_of(metadata, path)
    assert family is not None
    lacking = [token for token in family.control_tokens() if len(model.tokenize(token, special=True)) != 1]
    if lacking:
        named = ", ".join(repr(token) for token in lacking[:4])
        raise PairingError(
            f"the vocabulary of {model.path.name} lacks {named}, which this projector needs: they are not a pair",
            path,
        )
    return family
