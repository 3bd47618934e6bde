"""Choose the vision encoder for a language model: the only one there is, or the one that measures fastest here."""

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
from pocketvlm.system.json_cache import file_hash
from pocketvlm.system.machine import physical_cores, processor
from pocketvlm.system.timing import RepeatedTiming
from pocketvlm.vision import encoder_speeds, onnx
from pocketvlm.vision.compatibility import CheckedFiles, family_of
from pocketvlm.vision.dynamic_size import DynamicSize
from pocketvlm.vision.embedding_cache import EmbeddingCache
from pocketvlm.vision.embedding_disk_cache import DiskCache
from pocketvlm.vision.encoder import Vision, VisionEncoder
from pocketvlm.vision.encoder_speeds import EncoderSpeed
from pocketvlm.vision.family import RGB, Family, PicturePlan
from pocketvlm.vision.mtmd import MtmdEncoder, NativeVision
from pocketvlm.vision.providers import CPU, devices_for
from pocketvlm.vision.tiled import FamilyVision

_log = logging.getLogger(__name__)
_REVISION = 2  # part of disk cache keys; raise it when the same files give other embeddings, as after a bug fix
_MAX_SECONDS = 3.0  # of timing one encoder; a tile is encoded again to see past the costs of the first run
_MERGES = ("projector.scale_factor", "spatial_merge_size")  # keys of: patches along the edge of a token
_EDGE = 224  # pixels of the tile that encoders are measured with, unless the family needs another size


@dataclass(frozen=True)
class Candidate:
    """An encoder that could be used. `key` names file and device in `encoder_speeds`. `open` takes a thread count.

    `files` hold its weights. `on_cpu`: it computes with threads of this process.
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
    """Return the vision for files that were checked, None where there is no encoder.

    `threads` None: the number that measures best. The physical cores of this process are the upper limit. `device` is
    where onnxruntime runs. `gpu` is an index into `library.devices` for libmtmd, None its CPU. Embeddings are cached
    within `cache_size` bytes, and in `cache_files`. Raises PairingError where the vocabulary lacks a control token,
    NativeLibraryError for a device that is not available.
    """

    def new_cache(key: str, files: Sequence[Path]) -> EmbeddingCache:
        encoder = f"{_REVISION} {processor()} {_libraries(gpu)} {key} {[*map(sha256_of, files)]}" if cache_files else ""
        return EmbeddingCache(cache_size, width=model.n_embd_inp, files=cache_files, encoder=encoder)

    counts = _thread_counts(threads)
    family, candidates = _candidates(model, checked, device=device, gpu=gpu)
    if family is None:
        if checked.projector is None:
            return None
        mtmd = Mtmd(checked.projector.path, model, threads=counts[0], device=gpu)
        return NativeVision(mtmd, model.n_vocab, new_cache("", [checked.projector.path]))
    best, count = select_encoder(candidates, partial(_noise_tile, family), device_name(threads, gpu), counts)
    return FamilyVision(family, best.open(count), mrope=model.mrope, cache=new_cache(best.key, best.files))


def time_encoders(
    model: Model, checked: CheckedFiles, *, threads: int | None = None, device: str = "auto", gpu: int | None = None
) -> dict[str, EncoderSpeed]:
    """Return the speed of each encoder for the tile that they are compared with, by the name of its file.

    Speeds that are not remembered, or were measured on a busy machine, are measured now and remembered.
    """
    family, candidates = _candidates(model, checked, device=device, gpu=gpu)
    if family is None:
        return {}
    name = device_name(threads, gpu)
    speeds: Mapping[str, EncoderSpeed] = encoder_speeds.recall(name)
    if not all(candidate.key in speeds and speeds[candidate.key].steady for candidate in candidates):
        speeds = _measure(candidates, _noise_tile(family), _thread_counts(threads))
        encoder_speeds.remember(name, speeds)
    slowest_first = sorted((speeds[candidate.key] for candidate in candidates), key=lambda speed: -speed.seconds)
    return {speed.name.split(",")[0]: speed for speed in slowest_first}  # the fastest where a file has several


def measured_tile(family: Family) -> PicturePlan:
    """Return the plan of the tile that encoders are compared with."""
    return family.plan((_EDGE, _EDGE), "low", None)


def tile_patches(family: Family | None, plan: PicturePlan | None, metadata: Mapping[str, object]) -> int:
    """Return the number of patches in a tile of a planned picture, 0 where the encoder's metadata does not say."""
    patch, edge = (metadata.get(f"clip.vision.{key}") for key in ("patch_size", "image_size"))
    if not isinstance(patch, int) or not isinstance(edge, int) or patch < 1:
        return 0
    if plan and isinstance(family, DynamicSize):
        return plan.used[0] * plan.used[1] // patch**2
    square = (edge // patch) ** 2
    merge = next((m for key in _MERGES if isinstance(m := metadata.get(f"clip.vision.{key}"), int)), None)
    if plan and family and merge and family.tile_tokens * merge**2 != square:  # tiles have several sizes
        return round(merge**2 * plan.tokens / plan.tiles)
    return square


def _candidates(
    model: Model, checked: CheckedFiles, *, device: str, gpu: int | None
) -> tuple[Family | None, list[Candidate]]:
    """Return the family of the pictures and the encoders for them; none where the family is unknown."""
    families: list[Family] = []
    candidates: list[Candidate] = []
    if (encoder := checked.encoder) is not None:
        candidates += [
            Candidate(
                f"{file_hash(encoder.path)}:{where}",
                f"{encoder.path.name}, onnxruntime, {where}",
                partial(_open_onnx, encoder, model, where),
                (encoder.path, *encoder.data_files),
                where == CPU,
            )
            for where in devices_for(device, onnx.runtime().get_available_providers())
        ]
        families.append(_known_family(model, encoder.metadata, encoder.path))
    if (projector := checked.projector) is not None and family_of(projector.metadata, projector.path) is not None:
        family = _known_family(model, projector.metadata, projector.path)
        families.append(family)
        candidates.append(
            Candidate(
                file_hash(projector.path),
                f"{projector.path.name}, libmtmd",
                partial(_open_mtmd, projector, model, family, gpu),
                (projector.path,),
                gpu is None,
            )
        )
    if encoder is not None and any(family != families[0] for family in families):
        raise PairingError(
            "prepares pictures in another way than the mmproj next to it: they are not a pair", encoder.path
        )
    return (families[0] if families else None), candidates


def select_encoder(
    candidates: Sequence[Candidate], tile: Callable[[], RGB], device: str, counts: Sequence[int]
) -> tuple[Candidate, int]:
    """Return the fastest candidate on this device and its number of threads.

    Speeds are remembered, or measured on `tile`. `counts` are the numbers of threads to try; all but the first are
    tried with the fastest candidate only.
    """
    speeds: Mapping[str, EncoderSpeed] = encoder_speeds.recall(device)
    if len(candidates) > 1 and any(candidate.key not in speeds for candidate in candidates):
        speeds = _measure(candidates, tile(), counts)
        encoder_speeds.remember(device, speeds)
    best = min(candidates, key=lambda c: speeds[c.key].seconds if c.key in speeds else 0.0)
    return best, min(speeds[best.key].threads, max(counts)) if best.key in speeds else counts[0]


def device_name(threads: int | None, gpu: int | None = None) -> str:
    """Return what a measurement is valid for: the processor, the cores that we may use, and the libraries."""
    count = f"{threads} threads" if threads else f"{physical_cores()} cores"
    return f"{processor()}, {count}, {_libraries(gpu)}"


def _libraries(gpu: int | None) -> str:
    llama = f"{library.build().label}{'' if gpu is None else f' on {library.devices()[gpu].name}'}"
    return f"{llama}, onnxruntime {onnx.version()}"


def _measure(candidates: Sequence[Candidate], tile: RGB, counts: Sequence[int]) -> dict[str, EncoderSpeed]:
    _log.info("measuring %d vision encoders, once on this device", len(candidates))
    speeds = {candidate.key: _time(candidate, tile, counts[0]) for candidate in candidates}
    fastest = min(candidates, key=lambda candidate: speeds[candidate.key].seconds)
    for threads in counts[1:]:
        speed = _time(fastest, tile, threads)
        speeds[fastest.key] = min(speeds[fastest.key], speed, key=lambda speed: speed.seconds)
    return speeds


def _time(candidate: Candidate, tile: RGB, threads: int) -> EncoderSpeed:
    encoder = candidate.open(threads)
    try:
        timing = RepeatedTiming(threads if candidate.on_cpu else None, enough=_MAX_SECONDS)
        while timing.wanted:
            timing.run(lambda: encoder.encode_tile(tile))
    finally:
        encoder.close()
    seconds = timing.seconds
    _log.info("%s, %d threads: %.3f s a tile", candidate.name, threads, seconds)
    return EncoderSpeed(name=candidate.name, threads=threads, seconds=seconds, steady=timing.steady)


def _thread_counts(threads: int | None) -> tuple[int, ...]:
    """Return the numbers of threads to try, the likeliest first: the given one, or all and half of the cores."""
    count = min(threads or physical_cores(), physical_cores())
    return (count,) if threads is not None or count == 1 else (count, count // 2)


def _noise_tile(family: Family) -> RGB:
    """Return a tile of noise, as small as the family allows. Encoders need as long for noise as for a photo."""
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


def _known_family(model: Model, metadata: dict[str, object], path: Path) -> Family:
    """Return the family of a checked file. Raises PairingError where the vocabulary lacks its control tokens."""
    family = family_of(metadata, path)
    assert family is not None
    missing = [token for token in family.control_tokens() if len(model.tokenize(token, special=True)) != 1]
    if missing:
        tokens = ", ".join(repr(token) for token in missing[:4])
        raise PairingError(
            f"the vocabulary of {model.path.name} lacks {tokens}, which this projector needs: they are not a pair",
            path,
        )
    return family
