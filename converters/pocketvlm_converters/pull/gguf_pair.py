"""Make a bundle of ready GGUF files, which are checked as a pair and not changed."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

from pocketvlm.files.bundle import Bundle, FileEntry, Manifest, Role, sha256_of
from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.compatibility import check_files, named_family
from pocketvlm_converters.atomic import check_target, new_folder
from pocketvlm_converters.checkpoint.folder import source_of
from pocketvlm_converters.pull.hub import Listing
from pocketvlm_converters.pull.select_files import Pair


def bundle_pair(listing: Listing, pair: Pair, folder: Path, output: Path, force: bool) -> Bundle:
    """Make the bundle `output` of the files in `folder`, with hard links where the file system supports them.

    Raises OutputError, and a ModelError if the files are not a pair.
    """
    check_target(output, None, force)
    checked = check_files(folder / pair.model.name, folder / pair.mmproj.name, None)
    assert checked.projector is not None
    metadata = dict(checked.projector.metadata)
    family = named_family(metadata, checked.projector.path)
    parts: tuple[tuple[Role, str, str], ...] = (
        ("model", pair.model.name, pair.quantization),
        ("mmproj", pair.mmproj.name, pair.projector),
    )
    with new_folder(output, force) as bundle:
        entries = []
        for role, name, kind in parts:
            _link(folder / name, bundle / name)
            size, sha256 = (bundle / name).stat().st_size, sha256_of(bundle / name)
            entries.append(FileEntry(name=name, role=role, quantization=kind, size=size, sha256=sha256))
        Manifest(
            name=output.name,
            family=family[0] if family else projector_type(metadata) or "",
            architecture=checked.model.architecture,
            files=tuple(entries),
            source=source_of(listing.repository, {entry.name: entry.sha256 for entry in entries}),
            versions={"pocketvlm": importlib.metadata.version("pocketvlm")},
            notes=(f"ready GGUF files of {listing.repository} at {listing.commit}: nothing was proven",),
        ).write(bundle)
    return Bundle(output)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # e.g. a file system without hard links
        shutil.copyfile(source, target)
