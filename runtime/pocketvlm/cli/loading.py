"""The model that a command names: a bundle, or a .gguf with or without its vision encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pocketvlm.vlm import VLM

PictureCacheSize = Annotated[
    int | None,
    typer.Option(help="Memory for embeddings of pictures in MiB; 256, or less on a small machine, by default."),
]
PictureCache = Annotated[
    Path | None, typer.Option(help="A folder that keeps embeddings of pictures; they tell about the pictures.")
]
PictureFilesSize = Annotated[int, typer.Option(help="What that folder may hold in MiB.")]
PICTURE_FILES_SIZE = 1024


def kept(size: int | None, folder: Path | None, files_size: int) -> dict[str, Any]:
    """The three options above as VLM.load has them."""
    return {
        "picture_cache_size": None if size is None else size << 20,
        "picture_cache": folder,
        "picture_files_size": files_size << 20,
    }


def load(model: str | None, mmproj: str | None, **options: Any) -> VLM:
    """`options` are those of VLM.load."""
    from pocketvlm.vlm import VLM

    target, gguf = (None, model) if model and (mmproj or model.lower().endswith(".gguf")) else (model, None)
    return VLM.load(target, model=gguf, mmproj=mmproj, **options)
