"""What `pocketvlm.pull` does, which finds it by an entry point."""

from __future__ import annotations

from pathlib import Path

from pocketvlm.errors import FileError
from pocketvlm.files.bundle import Bundle, is_bundle
from pocketvlm_converters.catalog.entry import find_entry
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.pull.pull import Wanted, is_of, pulled_folder, repository_of
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
    """Return the folder of the bundle. A complete one of this model is kept, unless types or a revision are given."""
    wanted = Wanted(name, Path(output) if output else None, revision, gguf, quantize, mmproj, onnx, force, keep)
    if not (force or quantize or mmproj or onnx or revision) and (folder := _complete_bundle(wanted)):
        return folder
    return pull_model(wanted, progress or silent).path


def _complete_bundle(wanted: Wanted) -> Path | None:
    """Return the folder of the wanted model, if it is there. Another model stays: pulling says how to replace it."""
    entry = find_entry(wanted.name)
    repository, ready = repository_of(wanted, entry)
    folder = wanted.output or pulled_folder(entry.id if entry else repository)
    if not is_bundle(folder):
        return None
    try:
        bundle = Bundle(folder)
        if not is_of(bundle, repository, ready=ready):
            return None
        return bundle.path.absolute()
    except FileError:  # damaged: pulling says how to replace it
        return None
