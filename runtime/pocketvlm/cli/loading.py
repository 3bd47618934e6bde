"""The model that a command names: a bundle, or a .gguf with or without its vision encoder. And how it is to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from pocketvlm.errors import PocketVLMError, RequestError

if TYPE_CHECKING:
    from rich.status import Status

    from pocketvlm.chat.vlm import VLM

_OF_A_PICTURE = ("path", "url", "image", "image_url")  # fields whose errors name the picture itself
# Options of several commands, each in one place.
Model = Annotated[
    str | None, typer.Option("-m", "--model", help="A bundle, a .gguf or the name of a pulled model; iota without one.")
]
Mmproj = Annotated[str | None, typer.Option(help="The vision encoder of a .gguf model: .gguf or .onnx.")]
Encoder = Annotated[str, typer.Option(help="Which vision encoder of a bundle: gguf, onnx or auto (the fastest here).")]
Device = Annotated[
    str,
    typer.Option(
        help="Where it runs: auto, cpu, cuda, metal or vulkan, :1 for the second; for ONNX also coreml, openvino, ..."
    ),
]
Threads = Annotated[int | None, typer.Option(help="Threads; the physical cores by default.")]
Memory = Annotated[
    str | None,
    typer.Option(help="Memory that it may take, as 4G: context, encoder and picture tokens are made to fit."),
]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 (the default) always takes the likeliest token.")]
Resolution = Annotated[str, typer.Option(help="low, auto (never enlarge) or high (the model's own full size).")]
PictureCacheSize = Annotated[
    int | None,
    typer.Option(help="Memory for embeddings of pictures in MiB; 256, or less on a small machine, by default."),
]
PictureCache = Annotated[
    Path | None, typer.Option(help="A folder that keeps embeddings of pictures; they tell about the pictures.")
]
PictureFilesSize = Annotated[int, typer.Option(help="What that folder may hold in MiB.")]
PICTURE_FILES_SIZE = 1024
Speculate = Annotated[
    str, typer.Option(help="Draft what answers repeat of their prompts: off, on, or auto (where it is faster).")
]


def check_detail(*given: str) -> None:
    from pocketvlm.messages import Detail

    for detail in given:
        if detail not in get_args(Detail):
            raise RequestError(f"must be low, auto or high, not {detail}", "--detail")


def waiting(told: str) -> Status:
    """Says what takes its time, on standard error, where somebody looks."""
    from rich.console import Console

    return Console(stderr=True).status(told)


def kept(size: int | None, folder: Path | None, files_size: int) -> dict[str, Any]:
    """The three options of the picture cache as VLM.load has them."""
    return {
        "picture_cache_size": None if size is None else size << 20,
        "picture_cache": folder,
        "picture_files_size": files_size << 20,
    }


def load(model: str | None, mmproj: str | None, *, memory: str | None = None, **options: Any) -> VLM:
    """`options` are those of VLM.load. MemoryBudgetError where the model does not fit `memory` in any way."""
    from pocketvlm.chat.vlm import VLM

    return VLM.load(**loading(model, mmproj, memory=memory, **options))


def loading(model: str | None, mmproj: str | None, *, memory: str | None = None, **options: Any) -> dict[str, Any]:
    """What to give VLM.load. What is changed to keep within `memory` is told on standard error."""
    target, gguf = (None, model) if model and (mmproj or model.lower().endswith(".gguf")) else (model, None)
    given = {"target": target, "model": gguf, "mmproj": mmproj, **options}
    if memory is None:
        return given
    from pocketvlm.plan.budget import keep_within, read_size

    chosen, found = keep_within(given, memory)
    changed = [f"{name.replace('_', ' ')} {value}" for name, value in chosen.items() if given.get(name) != value]
    told = f"about {found.memory_bytes / 1e6:,.0f} MB of {read_size(memory) / 1e6:,.0f} MB"
    typer.echo(f"memory: {told}{': ' if changed else ''}{', '.join(changed)}", err=True)
    return chosen


def told(error: PocketVLMError) -> str:
    """For a person, who wrote no messages: an error in them names the picture or the option, not the field."""
    if not isinstance(error, RequestError):
        return str(error)
    before, _, field = (error.param or "").rpartition(".")
    if before and field in _OF_A_PICTURE:
        return error.message
    if not before.startswith("messages"):
        return str(error)
    return error.message if field.isdigit() else f"{field}: {error.message}"
