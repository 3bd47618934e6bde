"""What a checkpoint of the catalogue takes here, by `pocketvlm plan` on a sketch of its bundle.

It takes a second or two, so what was found is remembered in the user's cache folder.
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

from pocketvlm.plan.prediction import Planner
from pocketvlm.system.json_cache import JSONCache
from pocketvlm.system.machine import allowed_cpus
from pocketvlm.vision.select_encoder import device_name
from pocketvlm_converters.catalog.entry import Entry, Types
from pocketvlm_converters.catalog.meta_bundle import model_of, write_bundle
from pocketvlm_converters.progress import Progress, silent

PICTURE = (640, 480)
# Bytes of memory for each token of a vocabulary, as libllama has it. Measured likewise.
_MEMORY = {"bytes": 320, "characters": 152}
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_TABLE = JSONCache("catalog.json", "figures", most=1024)


@dataclass(frozen=True)
class Figures:
    """Bytes. `memory` is that of a process that was asked about one picture, by vision encoder: gguf, onnx.

    `download` is the checkpoint's weights in its `dtype`, `bundle` what is kept, `context` in tokens what the memory is
    for. `picture_tokens` and `picture_tiles` are how many of them one of 640x480 takes.
    """

    parameters: int
    download: int
    bundle: int
    memory: dict[str, int]
    context: int
    picture_tokens: int
    picture_tiles: int


def figures(entry: Entry, types: Types | None = None) -> Figures:
    """With the recommended types, or others. Raises CheckpointError, QuantizationError."""
    return all_figures([(entry, types or entry.types)])[0]


def all_figures(wanted: Sequence[tuple[Entry, Types]], progress: Progress = silent) -> list[Figures]:
    """Likewise, of several together. `progress` hears only of what must be computed."""
    found, missing, known = {}, {}, _TABLE.read()
    keys = [_key(*one) for one in wanted]
    for key, one in zip(keys, wanted, strict=True):
        if remembered := _read(known.get(key)):
            found[key] = remembered
        else:
            missing[key] = one
    # Most of the time goes to processes that libllama is asked in.
    with ThreadPoolExecutor(allowed_cpus()) as pool:
        running = {pool.submit(_figures, *one): key for key, one in missing.items()}
        try:
            for done, future in enumerate(as_completed(running)):
                progress("computing, once", done, len(running))
                found[running[future]] = future.result()
                _TABLE.add(running[future], asdict(future.result()))
        except BaseException:  # Ctrl-C too: what waits for its turn must not run
            pool.shutdown(cancel_futures=True)
            raise
    if missing:
        progress("computing, once", len(missing), len(missing))
    return [found[key] for key in keys]


def _figures(entry: Entry, types: Types) -> Figures:
    model = model_of(entry)
    vocabulary = _MEMORY[model.entry.tokenizer] * model.tokens
    with tempfile.TemporaryDirectory(prefix="pocketvlm-") as folder:
        found = write_bundle(model, types, Path(folder))
        planner = Planner(found, picture=PICTURE, timed=False)
        usual = planner.usual()
        memory = {e.kind: planner.predict(replace(usual, encoder=e.kind)).memory_bytes for e in planner.encoders}
        seen = planner.predict(usual)
        return Figures(
            model.parameters,
            _BYTES[entry.dtype] * model.parameters,
            sum(path.stat().st_size for path in Path(folder).iterdir()),
            {kind: size + vocabulary for kind, size in memory.items()},
            usual.context,
            seen.picture_tokens or 0,
            seen.picture_tiles,
        )


def _key(entry: Entry, types: Types) -> str:
    libraries = [device_name(None), find_spec("onnx") is not None]
    told = [version("pocketvlm"), *libraries, entry.model_dump_json(exclude={"path", "title"}), types.model_dump_json()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _read(remembered: dict[str, Any] | None) -> Figures | None:
    try:
        return Figures(**remembered) if remembered else None
    except TypeError:  # of another version
        return None
