"""Estimate the sizes and the memory of a catalogue entry on this machine: `pocketvlm plan` on a meta bundle.

An estimate takes a second or two, so results are cached in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.plan.prediction import Planner, Prediction, RunConfiguration
from pocketvlm.system.json_cache import JSONCache
from pocketvlm.system.machine import allowed_cpus
from pocketvlm.vision.select_encoder import device_name
from pocketvlm_converters.catalog.entry import Entry, Types
from pocketvlm_converters.catalog.meta_bundle import CatalogModel, model_of, write_bundle
from pocketvlm_converters.progress import Progress, silent

PICTURE = (640, 480)  # width and height in pixels of the picture that the figures are about
# Bytes of libllama's memory for each token of a vocabulary, by the kind of tokenizer; measured as the file's bytes in
# meta_bundle.
_VOCABULARY_MEMORY = {"bytes": 320, "characters": 152}
_WEIGHT_SIZE = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes
_STEP = "computing, once"
_CACHE = JSONCache("catalog.json", "figures", most=1024)


@dataclass(frozen=True)
class Figures:
    """The sizes of an entry; all but `parameters`, `context` and those of the picture are in bytes.

    `download` is the size of the checkpoint's weights in its `dtype`, `bundle` that of the converted files. `memory` is
    that of a process that answers a question about one picture, by vision encoder (gguf, onnx), with a context of
    `context` tokens. `picture_tokens` and `picture_tiles` are those of a picture of 640x480.
    """

    parameters: int
    download: int
    bundle: int
    memory: dict[str, int]
    context: int
    picture_tokens: int
    picture_tiles: int


class MetaPlanner(Planner):
    """Plans for a model that is not downloaded, from the meta bundle that it writes to `folder`."""

    def __init__(
        self,
        model: CatalogModel,
        types: Types,
        folder: Path,
        options: LoadOptions | None = None,
        *,
        picture: tuple[int, int] = PICTURE,
    ) -> None:
        super().__init__(write_bundle(model, types, folder), options, picture=picture, timed=False)
        self._vocabulary = _VOCABULARY_MEMORY[model.entry.tokenizer] * model.vocabulary_size

    def predict(self, configuration: RunConfiguration) -> Prediction:
        """Add the vocabulary, which is a hole in the meta bundle."""
        predicted = super().predict(configuration)
        return replace(
            predicted,
            anonymous_bytes=predicted.anonymous_bytes + self._vocabulary,
            parts={**predicted.parts, "vocabulary": self._vocabulary},
        )


def figures(entry: Entry, types: Types | None = None) -> Figures:
    """Return an entry's figures with the recommended or other types. Raises CheckpointError, QuantizationError."""
    return all_figures([(entry, types or entry.types)])[0]


def all_figures(wanted: Sequence[tuple[Entry, Types]], progress: Progress = silent) -> list[Figures]:
    """Return the figures of several entries. `progress` reports only those that are not cached."""
    figures_by_key, missing, cached = {}, {}, _CACHE.read()
    keys = [_key(entry, types) for entry, types in wanted]
    for key, (entry, types) in zip(keys, wanted, strict=True):
        if cached_figures := _parse(cached.get(key)):
            figures_by_key[key] = cached_figures
        else:
            missing[key] = entry, types
    # Threads suffice: most of the time is spent in subprocesses that call libllama.
    with ThreadPoolExecutor(allowed_cpus()) as pool:
        running = {pool.submit(_compute, entry, types): key for key, (entry, types) in missing.items()}
        try:
            for done, future in enumerate(as_completed(running)):
                progress(_STEP, done, len(running))
                figures_by_key[running[future]] = future.result()
                _CACHE.add(running[future], asdict(future.result()))
        except BaseException:  # also Ctrl-C: tasks that have not started must not run
            pool.shutdown(cancel_futures=True)
            raise
    if missing:
        progress(_STEP, len(missing), len(missing))
    return [figures_by_key[key] for key in keys]


def _compute(entry: Entry, types: Types) -> Figures:
    model = model_of(entry)
    with tempfile.TemporaryDirectory(prefix="pocketvlm-") as folder:
        planner = MetaPlanner(model, types, Path(folder))
        usual = planner.usual()
        memory = {str(e.kind): planner.predict(replace(usual, encoder=e.kind)).memory_bytes for e in planner.encoders}
        prediction = planner.predict(usual)
        return Figures(
            parameters=model.parameters,
            download=_WEIGHT_SIZE[entry.dtype] * model.parameters,
            bundle=sum(path.stat().st_size for path in Path(folder).iterdir()),
            memory=memory,
            context=usual.context,
            picture_tokens=prediction.picture_tokens or 0,
            picture_tiles=prediction.picture_tiles,
        )


def _key(entry: Entry, types: Types) -> str:
    """Return the cache key: a hash of all that the figures depend on."""
    environment = [version("pocketvlm"), device_name(None), find_spec("onnx") is not None]
    inputs = [*environment, entry.model_dump_json(exclude={"path", "title"}), types.model_dump_json()]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _parse(cached: dict[str, Any] | None) -> Figures | None:
    try:
        return Figures(**cached) if cached else None
    except TypeError:  # written by another version
        return None
