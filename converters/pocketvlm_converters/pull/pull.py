"""The whole way: choose, check the room, download, then convert or bundle. All or nothing, but a download goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pocketvlm.errors import CheckpointError, DownloadError, OutputError
from pocketvlm.files.bundle import Bundle
from pocketvlm.files.locate import MODELS, REPOSITORY
from pocketvlm.system.machine import data_folder
from pocketvlm_converters.atomic import check_target, writing
from pocketvlm_converters.catalog.entry import Entry, Types, find_entry
from pocketvlm_converters.checkpoint.config import Section, parse_object
from pocketvlm_converters.checkpoint.files import read_limited
from pocketvlm_converters.checkpoint.folder import largest
from pocketvlm_converters.convert import convert
from pocketvlm_converters.families import check_model_type
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.pull import select_files
from pocketvlm_converters.pull.gguf_pair import bundle_pair
from pocketvlm_converters.pull.hub import Hub, Listing, RemoteFile
from pocketvlm_converters.quantization.quantize import bundle_types

_DEFAULT = Types(quantize="Q4_K_M", mmproj="q8_0", onnx="int8")
_LOCK = ".lock"  # in the folder of the download, while a pull is at work there
_CONVERTERS = ("onnx", "tokenizers")
_CONVERTED = 2.2  # times the checkpoint: it once more for a while, what is made of it, and some air


@dataclass(frozen=True)
class Wanted:
    """What to pull: a name of the catalogue or of the hub. None leaves a type to the catalogue's recommendation."""

    name: str
    output: Path | None = None
    revision: str | None = None
    gguf: bool = False
    quantize: str | None = None
    mmproj: str | None = None
    onnx: str | None = None
    force: bool = False
    keep: bool = False  # the downloaded files, too


def pull(wanted: Wanted, progress: Progress = silent, say: Callable[[str], None] = lambda _: None) -> Bundle:
    """Raises DownloadError, ConversionError or ModelError leaves; then there is no bundle, and the download is kept."""
    entry = find_entry(wanted.name)
    hub = Hub()
    ready = wanted.gguf or (entry is not None and str(entry.gguf).casefold() == wanted.name.casefold())
    repository = _repository(wanted.name, entry, ready)
    output = (wanted.output or place_of(entry.id if entry else repository)).absolute()
    if wanted.output or output.parent.is_dir():
        check_target(output, None, wanted.force)
    listing = hub.listing(repository, wanted.revision)
    if not wanted.gguf and "config.json" not in listing.files and select_files.ggufs(listing):
        ready = True
    types = entry.types if entry else _DEFAULT
    downloads = output.with_name(f".{output.name}.download")
    folder = downloads / listing.commit / repository.rpartition("/")[2]
    with writing(downloads), _alone(downloads):
        _only(downloads, listing.commit)
        way = _Way(hub, listing, folder, output, progress, say)
        bundle = way.ready(wanted, types) if ready else way.converted(wanted, types)
        if wanted.keep:
            say(f"kept {folder}")
        else:
            shutil.rmtree(folder.parent, ignore_errors=True)
    return bundle


def place_of(name: str) -> Path:
    """Where a model lies that was pulled by this name."""
    return data_folder() / MODELS / name


def name_of(bundle: Bundle) -> str:
    """What `pocketvlm chat --model` takes: its name where pulled models lie, else its path."""
    home = place_of("")
    return bundle.path.relative_to(home).as_posix() if bundle.path.is_relative_to(home) else str(bundle.path)


def _repository(name: str, entry: Entry | None, ready: bool) -> str:
    found = (entry.gguf if ready else entry.repository) if entry else name
    if found is None:
        held = "no ready GGUF files are known of it" if ready else "it is in the box already"
        raise DownloadError(held, name)
    if not REPOSITORY.fullmatch(found):
        raise DownloadError("is neither in the catalogue (pocketvlm models) nor a name of the hub, as owner/name", name)
    return found


@contextmanager
def _alone(downloads: Path) -> Iterator[None]:
    """Makes the folder, and removes it where nothing is left. Raises DownloadError where another pull is at work."""
    from filelock import FileLock, Timeout  # of the same extra as the Hub, which comes before

    downloads.mkdir(parents=True, exist_ok=True)
    lock = FileLock(downloads / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DownloadError("another pull is at work there", str(downloads)) from None
    try:
        yield
    finally:
        if [path.name for path in downloads.iterdir()] == [_LOCK]:
            shutil.rmtree(downloads, ignore_errors=True)
        lock.release()


def _only(downloads: Path, commit: str) -> None:
    """Nothing of another commit is left in the way."""
    for other in downloads.iterdir():
        if other.is_dir() and not other.is_symlink():
            if other.name != commit:
                shutil.rmtree(other)
        elif other.name != _LOCK:
            other.unlink()


@dataclass(frozen=True)
class _Way:
    hub: Hub
    listing: Listing
    folder: Path
    output: Path
    progress: Progress
    say: Callable[[str], None]

    def ready(self, wanted: Wanted, types: Types) -> Bundle:
        if wanted.onnx and wanted.onnx.lower() != "none":
            raise DownloadError("ready GGUF files have no ONNX encoder: leave out --onnx", self.listing.repository)
        pair = select_files.pair(self.listing, wanted.quantize, wanted.mmproj, (types.quantize,))
        self._download(pair.files, converted=False)
        return bundle_pair(self.listing, pair, self.folder, self.output, wanted.force)

    def converted(self, wanted: Wanted, types: Types) -> Bundle:
        if missing := [name for name in _CONVERTERS if find_spec(name) is None]:
            known = " or take ready GGUF files with --gguf" if select_files.ggufs(self.listing) else ""
            reason = f"{missing[0]} is missing to convert it: pip install 'pocketvlm[convert]'{known}"
            raise DownloadError(reason, self.listing.repository)
        given = {name: getattr(wanted, name) for name in Types.model_fields}
        chosen = types.model_copy(update={name: value for name, value in given.items() if value is not None})
        bundle_types(chosen.quantize, chosen.mmproj, chosen.onnx)
        for file in select_files.side_files(self.listing):
            self.hub.download(self.listing, file, self.folder)
        self._check_family()
        self._download(select_files.weight_files(self.listing, self.folder), converted=True)
        return convert(self.folder, self.output, **chosen.model_dump(), force=wanted.force, progress=self.progress)

    def _check_family(self) -> None:
        """Raises CheckpointError, and leaves nothing, as running it again would not help."""
        config = self.folder / "config.json"
        try:
            check_model_type(Section(parse_object(read_limited(config, largest(config.name)), config), config))
        except CheckpointError as error:
            shutil.rmtree(self.folder.parent, ignore_errors=True)
            raise CheckpointError(error.message, f"{self.listing.repository}/{config.name}") from None

    def _download(self, files: tuple[RemoteFile, ...] | list[RemoteFile], converted: bool) -> None:
        size = sum(file.size for file in files)
        here = sum(self._have(file) for file in files)
        room = size - here + (int(_CONVERTED * size) if converted else 0)
        free = shutil.disk_usage(_nearest(self.folder)).free
        if room > free:
            use = " to download and convert" if converted else ""
            raise OutputError(f"needs about {room / 1e9:.1f} GB{use}, {free / 1e9:.1f} GB are free", self.output)
        left = f", {here / 1e6:,.1f} MB of it are here already" if here else ""
        self.say(f"{self.listing.repository} at {self.listing.commit[:12]}: {size / 1e6:,.1f} MB{left}")
        for file in files:
            self.hub.download(self.listing, file, self.folder, self.progress)

    def _have(self, file: RemoteFile) -> int:
        paths = (self.folder / file.name, self.folder / f"{file.name}.part")
        return min(file.size, next((path.stat().st_size for path in paths if path.exists()), 0))


def _nearest(path: Path) -> Path:
    """The lowest of its folders that is there."""
    return path if path.is_dir() else _nearest(path.parent)
