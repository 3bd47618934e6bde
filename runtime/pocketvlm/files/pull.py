"""`pocketvlm.pull`: the way from Python to the packages that download and convert, which the runtime does not need."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from pocketvlm.errors import DownloadError

PullProgress = Callable[[str, int, int], None]  # (step, done, total)
_GROUP = "pocketvlm.functions"


def pull(
    id: str,
    *,
    output: str | Path | None = None,
    quantize: str | None = None,
    mmproj: str | None = None,
    onnx: str | None = None,
    revision: str | None = None,
    gguf: bool = False,
    force: bool = False,
    keep: bool = False,
    progress: PullProgress | None = None,
) -> Path:
    """Download a model and convert it, as `pocketvlm pull` does, and return the folder of its bundle.

    `id` is an id of the catalogue, or owner/name of the hub. The other arguments are the options of the command.
    `progress(step, done, total)` is called during the work, with bytes or items of the step. Where the bundle is there
    already, nothing is downloaded, unless `force` replaces it; an interrupted download is resumed.

    This is the only function that uses the network. It needs the extra hub, and convert for checkpoints.

    Raises DownloadError, a ConversionError or a ModelError; then there is no bundle.
    """
    point = next(iter(entry_points(group=_GROUP, name="pull")), None)
    if point is None:
        raise DownloadError(
            "the converters are not installed; install pocketvlm again, with its extras hub and convert"
        )
    function: Callable[..., Path] = point.load()
    return function(
        id,
        output=output,
        quantize=quantize,
        mmproj=mmproj,
        onnx=onnx,
        revision=revision,
        gguf=gguf,
        force=force,
        keep=keep,
        progress=progress,
    )
