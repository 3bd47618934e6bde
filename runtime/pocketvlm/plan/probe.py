"""A process that gets everything ready but the weights, and tells what it took and what more would be taken.

`python -m pocketvlm.plan.probe '{...}'` with the fields of `ProbeRequest`; a line of JSON on standard error.
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

from pocketvlm.engine.speculative.draft_length import MAX_DRAFT_TOKENS
from pocketvlm.errors import EngineError, ModelError, PocketVLMError
from pocketvlm.messages import ImagePart
from pocketvlm.native import log
from pocketvlm.pictures.images import read_picture
from pocketvlm.plan.layer_benchmark import benchmark_layers
from pocketvlm.system import subprocess
from pocketvlm.system.machine import Memory, process_memory
from pocketvlm.system.timing import RepeatedTiming
from pocketvlm.vision.compatibility import check_files

_PICTURE, _SMALLER = (1024, 768), (640, 480)
_SAYS = "rehearsal: "


@dataclass(frozen=True)
class ProbeRequest:
    """`contexts` are sizes to try, in tokens. Without `timed`, no speed is measured; of encoders only if `opened`."""

    model: str
    mmproj: str | None
    onnx: str | None
    contexts: tuple[int, ...]
    batch: int
    rows: int
    parallel: int
    exact: bool
    threads: int
    device: str
    timed: bool
    opened: bool


@dataclass(frozen=True)
class ProbeResult:
    """Bytes and seconds. `anonymous` and `mapped` are the process itself, with libraries and vocabulary.

    `reordered` is the copy of weights in the CPU's own order; `caches` and `scratch` go with the contexts. `width` is
    that of an embedding, in numbers. Seconds are of a token of a prompt and of an answer, of a pixel that is read and
    resized, and of the tile that encoders are compared with, by file: None or empty where nothing could be timed.
    Not `steady` where they vary, or other programs had the processor: then they are too long.
    """

    anonymous: int
    mapped: int
    reordered: int
    caches: tuple[int, ...]
    scratch: tuple[int, ...]
    width: int
    prompt: float | None
    answer: float | None
    pixel: float
    tiles: dict[str, float]
    steady: bool


def run_probe(asked: ProbeRequest) -> ProbeResult:
    """Run it. Raises ModelError with libllama's reason where it refuses the model."""
    lines: list[str] = []

    def take(line: str) -> bool:
        ours = line.startswith(_SAYS)
        if ours:
            lines.append(line.removeprefix(_SAYS))
        return ours

    ended = subprocess.run(__name__, json.dumps(asdict(asked)), take=take)
    if not lines:
        raise ModelError(f"cannot be planned for: {ended.signal}{' '.join(ended.lines)}", asked.model)
    found = json.loads(lines[-1])
    if "refused" in found:
        raise ModelError(found["refused"], asked.model)
    return parse_result(found)


def parse_result(found: Mapping[str, Any]) -> ProbeResult:
    """From JSON."""
    return ProbeResult(**{**found, "caches": tuple(found["caches"]), "scratch": tuple(found["scratch"])})


def _told(asked: ProbeRequest) -> ProbeResult:
    import pocketvlm.chat.vlm  # noqa: F401  # what a chat loads
    from pocketvlm.native import library, memory_estimate
    from pocketvlm.native.llama import Model
    from pocketvlm.vision import onnx
    from pocketvlm.vision.select_encoder import time_encoders

    checked = check_files(
        Path(asked.model), Path(asked.mmproj) if asked.mmproj else None, Path(asked.onnx) if asked.onnx else None
    )
    library.mtmd()
    if asked.onnx:
        onnx.runtime()
    model = Model(asked.model, gpu_layers=0, simulated=True)
    model.control_tokens(checked.model.array("tokenizer.ggml.token_type"))
    buffers = [
        memory_estimate.estimate_buffers(
            model,
            n_ctx=n,
            n_batch=asked.batch,
            sequences=asked.parallel,
            outputs=asked.parallel + MAX_DRAFT_TOKENS,
            exact=asked.exact,
        )
        for n in asked.contexts
    ]
    taken = process_memory() or Memory(0, 0, 0)
    matrices = [t for t in checked.model.tensors if len(t.shape) > 1 and not t.name.startswith("token_embd")]
    prompt = answer = None
    tiles: dict[str, float] = {}
    steady = True
    if asked.opened:
        device = "cpu" if asked.device == "cpu" else "auto"
        speeds = time_encoders(model, checked, threads=asked.threads, device=device)
        tiles = {name: speed.seconds for name, speed in speeds.items()}
        steady = all(speed.steady for speed in speeds.values())
    if asked.timed:
        try:
            speed = benchmark_layers(checked.model, rows=asked.rows, threads=asked.threads)
            prompt, answer, steady = speed.prompt, speed.answer, steady and speed.steady
        except (ModelError, EngineError, KeyError, StopIteration):
            pass  # a model that libllama cannot run in part
    return ProbeResult(
        taken.anonymous,
        taken.resident - taken.anonymous,
        sum(tensor.n_bytes for tensor in matrices if memory_estimate.reordered(tensor.type)),
        tuple(found.cache for found in buffers),
        tuple(sum(found.scratch.values()) for found in buffers),
        model.n_embd_inp,
        prompt,
        answer,
        _pixel_seconds() if asked.timed else 0.0,
        tiles,
        steady,
    )


def _pixel_seconds() -> float:
    """Of a JPEG file, with what is done to a photo on its way to the tiles."""
    data = BytesIO()
    Image.effect_noise(_PICTURE, 64).convert("RGB").save(data, "JPEG")

    def prepare() -> None:
        picture = read_picture(ImagePart(type="image", image=data.getvalue()), "picture")
        Image.fromarray(picture.pixels).resize(_SMALLER, Image.Resampling.LANCZOS)

    takes = RepeatedTiming(1, least=3)
    while takes.wanted:
        takes.run(prepare)
    return takes.seconds / (_PICTURE[0] * _PICTURE[1])


def main() -> None:
    asked = ProbeRequest(**json.loads(sys.argv[1]))
    try:
        told = asdict(_told(asked))
    except PocketVLMError as error:
        told = {"refused": getattr(error, "message", str(error))}
    log.forget_errors()
    print(_SAYS + json.dumps(told), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
