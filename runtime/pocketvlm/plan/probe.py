"""A process that loads everything but the weights and reports the memory used, the memory needed, and speeds.

`python -m pocketvlm.plan.probe '{...}'` takes the fields of `ProbeRequest` and prints a line of JSON to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from pocketvlm.engine.loading.choose_layout import choose_layout
from pocketvlm.engine.loading.layer_benchmark import benchmark_layers
from pocketvlm.engine.loading.loader import output_rows
from pocketvlm.errors import EngineError, ModelError, PocketVLMError
from pocketvlm.files.cache_type import CacheType
from pocketvlm.messages import ImagePart
from pocketvlm.native import log
from pocketvlm.pictures.images import read_picture
from pocketvlm.system import subprocess
from pocketvlm.system.machine import Memory, process_memory
from pocketvlm.system.timing import RepeatedTiming
from pocketvlm.vision.compatibility import check_files

_PICTURE, _RESIZED = (1024, 768), (640, 480)  # sizes of the picture whose reading is timed
_PREFIX = "probe: "  # of the line that holds the result


@dataclass(frozen=True)
class ProbeRequest:
    """What to probe. `contexts` are sizes in tokens, `cache_types` those that may be chosen.

    Speeds are measured if `timed`, those of encoders if `opened`.
    """

    model: str
    mmproj: str | None
    onnx: str | None
    contexts: tuple[int, ...]
    batch: int
    rows: int
    parallel: int
    cache_types: tuple[CacheType, ...]
    threads: int
    device: str
    timed: bool
    opened: bool


@dataclass(frozen=True)
class ProbeResult:
    """Sizes in bytes, times in seconds.

    `anonymous` and `mapped` are the memory of the process with its libraries and vocabulary. `reordered` is the copy of
    weights in the CPU's own order; `layout` is a `WeightLayout`. `caches` and `scratch` are those of the requested
    contexts, by type of the cache. `width` is the length of an embedding. `prompt` and `answer` are the time of a
    token, `pixel` that of reading and resizing a pixel, `tiles` that of the tile by which encoders are compared, by
    file; None or empty where nothing could be timed. Times that vary, or that other programs disturbed, are not
    `steady`: they are too long. `threads` computed the `answer`: fewer than requested where other programs ran and that
    was faster.
    """

    anonymous: int
    mapped: int
    reordered: int
    caches: dict[CacheType, tuple[int, ...]]
    scratch: dict[CacheType, tuple[int, ...]]
    width: int
    prompt: float | None
    answer: float | None
    pixel: float
    tiles: dict[str, float]
    steady: bool
    layout: str
    threads: int


def run_probe(request: ProbeRequest) -> ProbeResult:
    """Run the probe in a process of its own. Raises ModelError with libllama's reason where it refuses the model."""
    results = subprocess.PrefixedLines(_PREFIX)
    process = subprocess.run(__name__, json.dumps(asdict(request)), take=results)
    if not results.lines:
        raise ModelError(f"cannot be probed: {process.signal}{' '.join(process.lines)}", request.model)
    values = json.loads(results.lines[-1])
    if "refused" in values:
        raise ModelError(values["refused"], request.model)
    return parse_result(values)


def parse_result(values: Mapping[str, Any]) -> ProbeResult:
    """Make a result of the JSON object of its fields."""
    sizes = {name: {kind: tuple(each) for kind, each in values[name].items()} for name in ("caches", "scratch")}
    return ProbeResult(**{**values, **sizes})


def _probe(request: ProbeRequest) -> ProbeResult:
    import pocketvlm.chat.vlm  # noqa: F401  # loads what a chat loads
    from pocketvlm.native import library, memory_estimate
    from pocketvlm.native.llama import Model
    from pocketvlm.vision import onnx
    from pocketvlm.vision.select_encoder import time_encoders

    checked = check_files(
        Path(request.model),
        Path(request.mmproj) if request.mmproj else None,
        Path(request.onnx) if request.onnx else None,
    )
    library.mtmd()
    if request.onnx:
        onnx.runtime()
    model = Model(request.model, gpu_layers=0, simulated=True)
    model.control_tokens(checked.model.array("tokenizer.ggml.token_type"))
    buffers = {
        kind: [
            memory_estimate.estimate_buffers(
                model,
                n_ctx=n,
                n_batch=request.batch,
                sequences=request.parallel,
                outputs=output_rows(request.parallel),
                cache_type=kind,
            )
            for n in request.contexts
        ]
        for kind in request.cache_types
    }
    used = process_memory() or Memory(0, 0, 0)
    layout = choose_layout(
        checked.model,
        threads=request.threads,
        exact="f32" in request.cache_types,
        measure="until steady" if request.timed else "never",
    )
    matrices = [t for t in checked.model.tensors if len(t.shape) > 1 and not t.name.startswith("token_embd")]
    prompt = answer = None
    threads = request.threads
    tiles: dict[str, float] = {}
    steady = True
    if request.opened:
        device = "cpu" if request.device == "cpu" else "auto"
        speeds = time_encoders(model, checked, threads=request.threads, device=device)
        tiles = {name: speed.seconds for name, speed in speeds.items()}
        steady = all(speed.steady for speed in speeds.values())
    if request.timed:
        try:
            speed = benchmark_layers(checked.model, rows=request.rows, threads=request.threads, layout=layout)
            prompt, answer, steady = speed.prompt, speed.answer, steady and speed.steady
            if not speed.steady and threads > 1:  # the engine, too, uses fewer threads while other programs run
                fewer = benchmark_layers(checked.model, rows=request.rows, threads=threads // 2, layout=layout)
                if fewer.answer < answer:
                    answer, threads = fewer.answer, threads // 2
        except (ModelError, EngineError, KeyError, StopIteration):
            pass  # libllama cannot run a part of this model
    return ProbeResult(
        used.anonymous,
        used.resident - used.anonymous,
        0 if layout.mapped else sum(t.n_bytes for t in matrices if memory_estimate.reordered(t.type)),
        {kind: tuple(sizes.cache for sizes in each) for kind, each in buffers.items()},
        {kind: tuple(sum(sizes.scratch.values()) for sizes in each) for kind, each in buffers.items()},
        model.n_embd_inp,
        prompt,
        answer,
        _pixel_seconds() if request.timed else 0.0,
        tiles,
        steady,
        layout.value,
        threads,
    )


def _pixel_seconds() -> float:
    """Return the seconds per pixel to read a JPEG file and resize it, as for a photo."""
    data = BytesIO()
    Image.effect_noise(_PICTURE, 64).convert("RGB").save(data, "JPEG")

    def prepare() -> None:
        picture = read_picture(ImagePart(type="image", image=data.getvalue()), "picture")
        Image.fromarray(picture.pixels).resize(_RESIZED, Image.Resampling.LANCZOS)

    timing = RepeatedTiming(1, least=3)
    while timing.wanted:
        timing.run(prepare)
    return timing.seconds / (_PICTURE[0] * _PICTURE[1])


def main() -> None:
    request = ProbeRequest(**json.loads(sys.argv[1]))
    try:
        values = asdict(_probe(request))
    except PocketVLMError as error:
        values = {"refused": getattr(error, "message", str(error))}
    log.forget_errors()
    print(_PREFIX + json.dumps(values), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
