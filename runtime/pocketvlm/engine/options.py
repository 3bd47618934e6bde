"""How an engine runs a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pocketvlm.engine.speculative.draft_length import Speculate
from pocketvlm.errors import RequestError
from pocketvlm.files.cache_type import CacheType
from pocketvlm.system.json_types import SystemText
from pocketvlm.system.options import MEBIBYTES, Option, check_options
from pocketvlm.vision.compatibility import EncoderChoice

PICTURE_FILES_SIZE = 1 << 30  # bytes


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Raises RequestError, whose `param` names the option, for a value that is not valid.

    `parallel` requests run together, each with a context of `context_size` tokens. Drafts (`speculate`) are never used
    if the KV cache cannot be cut back, and by "auto" neither with `exact`.
    """

    # ggml ends the process above its own limits: GGML_MAX_N_THREADS (ggml.h), LLAMA_MAX_SEQ (llama-cparams.h).
    context_size: Annotated[
        int | None,
        Option(
            "Context of each request in tokens; by default the model's own, up to 8192.",
            flags=("--ctx-size", "--ctx"),
            least=1,
            most=1 << 24,  # longer than the context of any model; the cache's table alone takes a gigabyte
        ),
    ] = None
    threads: Annotated[int | None, Option("Threads; by default the physical cores.", least=1, most=512)] = None
    gpu_layers: Annotated[int, Option("Layers on the GPU; -1 puts as many there as fit.", least=-1)] = -1
    exact: Annotated[bool, Option("Compute logits that do not depend on what the caches hold, in float32; slower.")] = (
        False
    )
    vision: Annotated[
        EncoderChoice, Option("Vision encoder of a bundle: gguf, onnx, or auto (the faster one on this machine).")
    ] = "auto"
    device: Annotated[
        str,
        Option(
            "Where to run: auto, cpu, cuda, metal or vulkan (vulkan:1 is the second); an ONNX encoder also runs on "
            "coreml, openvino and others."
        ),
    ] = "auto"
    parallel: Annotated[int, Option("Requests that run together; others wait.", least=1, most=256)] = 1
    picture_cache_size: Annotated[
        int | None,
        Option(
            "Memory for the embeddings of pictures, in {unit}; by default 256 MiB, or less on a small machine.",
            unit=MEBIBYTES,
            least=0,
        ),
    ] = None
    picture_cache: Annotated[
        SystemText | Path | None,
        Option("Folder that also keeps the embeddings of pictures. They reveal what the pictures show."),
    ] = None
    picture_files_size: Annotated[
        int, Option("Largest size of the files in that folder, in {unit}.", unit=MEBIBYTES, least=0)
    ] = PICTURE_FILES_SIZE
    cache_type: Annotated[
        Literal["auto", "f16", "q8_0"],
        Option("Type of the KV cache: f16, q8_0 (half the memory), or auto (f16, or q8_0 where a budget needs it)."),
    ] = "auto"
    stuck_after: Annotated[
        float,
        Option("Seconds that a step or a tile may take before the engine's process is started again.", above=0),
    ] = 600.0
    speculate: Annotated[
        Speculate, Option("Draft what an answer repeats of its prompt or of itself: off, on, or auto (if faster).")
    ] = "auto"

    def __post_init__(self) -> None:
        check_options(self)
        if self.exact and self.cache_type != "auto":
            raise RequestError(f"{self.cache_type} cannot be combined with exact, whose cache is f32", "cache_type")

    @property
    def kv_type(self) -> CacheType:
        """The type of the KV cache."""
        if self.exact:
            return "f32"
        return "f16" if self.cache_type == "auto" else self.cache_type
