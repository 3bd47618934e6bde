"""What `pocketvlm.pull` does, which finds it by an entry point."""

from __future__ import annotations

from pathlib import Path

from pocketvlm.errors import FileError
from pocketvlm.files.bundle import Bundle, is_bundle
from pocketvlm_converters.catalog.entry import find_entry
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.pull.pull import Wanted, pulled_folder
from pocketvlm_converters.pull.pull import pull as pull_model


def pull(
    name: str,
    *,
    output: str | Path | None,
    quantize: str | None,
    mmproj: str | None,
    onnx: str | None,
    revision: str | None,
    gguf: bool,
    force: bool,
    keep: bool,
    progress: Progress | None,
) -> Path:
    """Return the folder of the bundle. One that is complete and of no other types or revision is kept as it is."""
    wanted = Wanted(name, Path(output) if output else None, revision, gguf, quantize, mmproj, onnx, force, keep)
    if not (force or quantize or mmproj or onnx or revision) and (folder := _complete_bundle(wanted)):
        return folder
    return pull_model(wanted, progress or silent).path


def _complete_bundle(wanted: Wanted) -> Path | None:
    entry = find_entry(wanted.name)
    folder = wanted.output or pulled_folder(entry.id if entry else wanted.name)
    if not is_bundle(folder):
        return None
    try:
        return Bundle(folder).path.absolute()
    except FileError:  # damaged: pulling says how to replace it
        return None
