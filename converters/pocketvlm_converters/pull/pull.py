"""Pull a model: choose its files, check the disk space, download them, then convert them or bundle them as they are.

The bundle appears when it is complete, or not at all; an interrupted download is resumed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pocketvlm.errors import CheckpointError, DownloadError, OutputError, ProofError
from pocketvlm.files.bundle import Bundle
from pocketvlm.files.locate import MODELS, REPOSITORY
from pocketvlm.system.extras import install_extra
from pocketvlm.system.machine import data_folder
from pocketvlm.system.terminal import size_text
from pocketvlm_converters.atomic import check_target, os_errors_as_output_errors
from pocketvlm_converters.catalog.entry import Entry, Types, find_entry, suggested_ids
from pocketvlm_converters.checkpoint.config import Section, parse_object
from pocketvlm_converters.checkpoint.files import read_limited
from pocketvlm_converters.checkpoint.folder import size_limit
from pocketvlm_converters.checkpoint.quantized import is_quantized
from pocketvlm_converters.convert import convert
from pocketvlm_converters.families import check_model_type
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.proof.conversion import KEEP_IT
from pocketvlm_converters.pull import select_files
from pocketvlm_converters.pull.gguf_pair import bundle_pair
from pocketvlm_converters.pull.hub import Hub, Listing, RemoteFile
from pocketvlm_converters.quantization.quantize import bundle_types

_DEFAULT_TYPES = Types(quantize="Q4_K_M", mmproj="q8_0", onnx="int8")
_LOCK = ".lock"  # in the folder of the downloads, while a pull runs
_CONVERTER_PACKAGES = ("onnx", "tokenizers")
# Disk space of a conversion as a multiple of the checkpoint: a temporary copy of it, the bundle, and a reserve.
_CONVERSION_SPACE = 2.2
_DEQUANTIZED_SPACE = 6.0  # if it is quantized: the temporary copy has 16 bits for each weight


@dataclass(frozen=True)
class Wanted:
    """What to pull: `name` is an id of the catalogue or a repository. Types that are None are the recommended ones."""

    name: str
    output: Path | None = None
    revision: str | None = None
    gguf: bool = False
    quantize: str | None = None
    mmproj: str | None = None
    onnx: str | None = None
    force: bool = False
    keep: bool = False  # keep the downloaded files


def pull(wanted: Wanted, progress: Progress = silent, say: Callable[[str], None] = lambda _: None) -> Bundle:
    """Pull a model and return its bundle. `say` gets messages for the user.

    Raises DownloadError, a ConversionError or a ModelError; then there is no bundle, and the download is kept.
    """
    entry = find_entry(wanted.name)
    hub = Hub()
    repository, ready = repository_of(wanted, entry)
    output = (wanted.output or pulled_folder(entry.id if entry else repository)).absolute()
    if wanted.output or output.parent.is_dir():
        check_target(output, None, wanted.force)
    listing = hub.listing(repository, wanted.revision)
    if not wanted.gguf and "config.json" not in listing.files and select_files.ggufs(listing):
        ready = True
    types = entry.types if entry else _DEFAULT_TYPES
    downloads = output.with_name(f".{output.name}.download")
    folder = downloads / listing.commit / repository.rpartition("/")[2]
    with os_errors_as_output_errors(downloads), _locked(downloads):
        _remove_other_commits(downloads, listing.commit)
        task = _Pull(hub, listing, folder, output, progress, say)
        bundle = task.bundle_ready_files(wanted, types) if ready else task.convert_checkpoint(wanted, types)
        if wanted.keep:
            say(f"kept {folder}")
        else:
            shutil.rmtree(folder.parent, ignore_errors=True)
    return bundle


def pulled_folder(name: str) -> Path:
    """Return the default folder of a model that was pulled by this name."""
    return data_folder() / MODELS / name


def name_of(bundle: Bundle) -> str:
    """Return what `pocketvlm chat --model` accepts: the name of a bundle in the default folder, else its path."""
    folder = pulled_folder("")
    return bundle.path.relative_to(folder).as_posix() if bundle.path.is_relative_to(folder) else str(bundle.path)


def is_of(bundle: Bundle, repository: str, *, ready: bool) -> bool:
    """Return whether a bundle was made of this repository, and if `ready`, of its GGUF files, which have no proof."""
    source = bundle.manifest.source
    names = (repository.casefold(), repository.rpartition("/")[2].casefold())  # a checkpoint is named by its folder
    is_ready = bool(source.files) and all(name.endswith(".gguf") for name in source.files)
    return source.name.casefold() in names and (is_ready or not ready)


def repository_of(wanted: Wanted, entry: Entry | None) -> tuple[str, bool]:
    """Return the repository to pull, and whether it is known to be one of ready GGUF files."""
    ready = wanted.gguf or (entry is not None and str(entry.gguf).casefold() == wanted.name.casefold())
    return _repository(wanted.name, entry, ready), ready


def _repository(name: str, entry: Entry | None, ready: bool) -> str:
    repository = (entry.gguf if ready else entry.repository) if entry else name
    if repository is None:
        raise DownloadError(
            "has no known ready GGUF files" if ready else "comes with pocketvlm; no need to pull it", name
        )
    if not REPOSITORY.fullmatch(repository):
        raise DownloadError(f"is neither an id of the catalogue nor owner/name of the hub{suggested_ids(name)}", name)
    return repository


@contextmanager
def _locked(downloads: Path) -> Iterator[None]:
    """Create and lock the folder; remove it at the end if it contains only the lock.

    Raises DownloadError if another pull has locked it.
    """
    from filelock import FileLock, Timeout  # in the same extra as huggingface_hub, which Hub has already imported

    downloads.mkdir(parents=True, exist_ok=True)
    lock = FileLock(downloads / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DownloadError("another pull uses this folder; wait for its end", str(downloads)) from None
    try:
        yield
    finally:
        if [path.name for path in downloads.iterdir()] == [_LOCK]:
            shutil.rmtree(downloads, ignore_errors=True)
        lock.release()


def _remove_other_commits(downloads: Path, commit: str) -> None:
    for path in downloads.iterdir():
        if path.is_dir() and not path.is_symlink():
            if path.name != commit:
                shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


@dataclass(frozen=True)
class _Pull:
    """One pull: files of `listing` are downloaded to `folder`, and `output` is the new bundle."""

    hub: Hub
    listing: Listing
    folder: Path
    output: Path
    progress: Progress
    say: Callable[[str], None]

    def bundle_ready_files(self, wanted: Wanted, types: Types) -> Bundle:
        if wanted.onnx and wanted.onnx.lower() != "none":
            raise DownloadError("ready GGUF files have no ONNX encoder; omit onnx=", self.listing.repository)
        pair = select_files.pair(self.listing, wanted.quantize, wanted.mmproj, (types.quantize,))
        self._download(pair.files)
        return bundle_pair(self.listing, pair, self.folder, self.output, wanted.force)

    def convert_checkpoint(self, wanted: Wanted, types: Types) -> Bundle:
        if missing := [name for name in _CONVERTER_PACKAGES if find_spec(name) is None]:
            alternative = ", or use ready GGUF files with gguf=True" if select_files.ggufs(self.listing) else ""
            reason = f"conversion needs {missing[0]}: {install_extra('convert')}{alternative}"
            raise DownloadError(reason, self.listing.repository)
        requested = {name: getattr(wanted, name) for name in Types.model_fields}
        chosen = types.model_copy(update={name: value for name, value in requested.items() if value is not None})
        bundle_types(chosen.quantize, chosen.mmproj, chosen.onnx)  # fail before the download
        for file in select_files.side_files(self.listing):
            self.hub.download(self.listing, file, self.folder)
        space = _DEQUANTIZED_SPACE if is_quantized(self._checked_config()) else _CONVERSION_SPACE
        self._download(select_files.weight_files(self.listing, self.folder), space)
        try:
            return convert(self.folder, self.output, **chosen.model_dump(), force=wanted.force, progress=self.progress)
        except ProofError as error:
            advice = f"to keep it, convert the downloaded files in {self.folder} with keep_unproven=True"
            raise ProofError(error.message.replace(KEEP_IT, advice), self.output) from None

    def _checked_config(self) -> Section:
        """Return config.json. Raise CheckpointError for an unknown family, and remove the download: it is useless."""
        path = self.folder / "config.json"
        try:
            config = Section(parse_object(read_limited(path, size_limit(path.name)), path), path)
            check_model_type(config)
        except CheckpointError as error:
            shutil.rmtree(self.folder.parent, ignore_errors=True)
            raise CheckpointError(error.message, f"{self.listing.repository}/{path.name}") from None
        return config

    def _download(self, files: tuple[RemoteFile, ...] | list[RemoteFile], conversion: float = 0) -> None:
        """Download files. `conversion` is the space, as a multiple of them, that is needed besides."""
        size = sum(file.size for file in files)
        downloaded = sum(self._downloaded_size(file) for file in files)
        needed = size - downloaded + int(conversion * size)
        free = shutil.disk_usage(_existing_folder(self.folder)).free
        use = " to download and convert" if conversion else ""
        space = f"needs about {size_text(needed)} of disk space{use}; {size_text(free)} are free"
        if needed > free:
            raise OutputError(f"{space}; make room, or choose another disk with output=", self.output)
        resumed = f", of which {size_text(downloaded)} are already downloaded" if downloaded else ""
        self.say(f"{self.listing.repository} at {self.listing.commit[:12]}: {size_text(size)}{resumed}; {space}")
        for file in files:
            self.hub.download(self.listing, file, self.folder, self.progress)

    def _downloaded_size(self, file: RemoteFile) -> int:
        paths = (self.folder / file.name, self.folder / f"{file.name}.part")
        return min(file.size, next((path.stat().st_size for path in paths if path.exists()), 0))


def _existing_folder(path: Path) -> Path:
    """Return `path`, or its nearest parent that exists."""
    return path if path.is_dir() else _existing_folder(path.parent)
