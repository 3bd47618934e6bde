"""A bundle of ready GGUF files: they are checked as a pair, and sealed as they are."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
from pathlib import Path

from pocketvlm.files.bundle import Bundle, FileEntry, Manifest, Role, Source, sha256_of
from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.compatibility import check_files, named_family
from pocketvlm_converters.atomic import check_target, new_folder
from pocketvlm_converters.pull.hub import Listing
from pocketvlm_converters.pull.select_files import Pair


def bundle_pair(listing: Listing, pair: Pair, folder: Path, output: Path, force: bool) -> Bundle:
    """From `folder` to the new bundle `output`, without a copy where the system has hard links.

    Raises ModelError leaves where the files are no pair, OutputError.
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
    with new_folder(output, force) as made:
        entries = []
        for role, name, kind in parts:
            _link(folder / name, made / name)
            size, sha256 = (made / name).stat().st_size, sha256_of(made / name)
            entries.append(FileEntry(name=name, role=role, quantization=kind, size=size, sha256=sha256))
        files = {entry.name: entry.sha256 for entry in entries}
        listed = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()))
        Manifest(
            name=output.name,
            family=family[0] if family else projector_type(metadata) or "",
            architecture=checked.model.architecture,
            files=tuple(entries),
            source=Source(name=listing.repository, sha256=hashlib.sha256(listed.encode()).hexdigest(), files=files),
            versions={"pocketvlm": importlib.metadata.version("pocketvlm")},
            notes=(f"ready GGUF files of {listing.repository} at {listing.commit}: nothing was proven",),
        ).write(made)
    return Bundle(output)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without
        shutil.copyfile(source, target)
