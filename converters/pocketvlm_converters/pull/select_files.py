"""Which files of a repository are needed. Names come from a stranger: only plain ones of known kinds are ever used."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import DownloadError
from pocketvlm.native.quantize import file_types
from pocketvlm_converters.checkpoint.config import parse_object, short
from pocketvlm_converters.checkpoint.folder import INDEX, SIDE_FILES, SINGLE, largest
from pocketvlm_converters.pull.hub import Listing, RemoteFile

_PLAIN = re.compile(r"[A-Za-z0-9][\w.+-]*")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PROJECTORS = ("q8_0", "f16", "bf16", "f32")  # the smallest first
_OTHER_NAMES = ("Q3_K", "Q4_K", "Q5_K")  # llama-quantize takes these for Q3_K_M, Q4_K_M and Q5_K_M
_UNNAMED = "UNKNOWN"  # type of a projector whose name does not end in one
_LANGUAGE = ("Q4_K_M", "Q8_0", "F16", "BF16", "F32")


@dataclass(frozen=True)
class Pair:
    """Ready GGUF files, with their types as their names tell them."""

    model: RemoteFile
    quantization: str
    mmproj: RemoteFile
    projector: str

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return (self.model, self.mmproj)


def side_files(listing: Listing) -> list[RemoteFile]:
    """Everything of a checkpoint but its weights. Raises DownloadError where it is none that can be converted."""
    if "config.json" not in listing.files:
        held = ": it holds GGUF files, which --gguf takes" if ggufs(listing) else ""
        raise DownloadError(f"is no checkpoint, as it has no config.json{held}", listing.repository)
    if SINGLE not in listing.files and INDEX not in listing.files:
        pickles = [name for name in listing.files if name.endswith(_PICKLES)]
        held = f", only {short(pickles[0])[1:-1]}: pickles can run code and are never downloaded" if pickles else ""
        raise DownloadError(f"has neither {SINGLE} nor {INDEX}{held}", listing.repository)
    names = (name for name in SIDE_FILES if name != INDEX or _sharded(listing))
    found = [listing.files[name] for name in names if name in listing.files]
    for file in found:
        if file.size > largest(file.name):
            raise DownloadError(f"has {file.size:,} bytes, too many for it", f"{listing.repository}/{file.name}")
    return found


def weight_files(listing: Listing, folder: Path) -> list[RemoteFile]:
    """The shards that the index in `folder` names, or the one file."""
    if not _sharded(listing):
        return [listing.files[SINGLE]]
    path, label = folder / INDEX, f"{listing.repository}/{INDEX}"
    named = parse_object(path.read_bytes(), path).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise DownloadError("weight_map names no tensors", label)
    found = []
    for name in sorted({str(shard) for shard in named.values()}):
        if not _PLAIN.fullmatch(name) or not name.endswith(".safetensors"):
            raise DownloadError(f"weight_map names {short(name)}, no .safetensors file beside it", label)
        if name not in listing.files:
            raise DownloadError("is missing there: the index names it", f"{listing.repository}/{name}")
        found.append(listing.files[name])
    return found


def ggufs(listing: Listing) -> dict[str, RemoteFile]:
    return {n: file for n, file in listing.files.items() if _PLAIN.fullmatch(n) and n.lower().endswith(".gguf")}


def pair(listing: Listing, quantize: str | None, mmproj: str | None, recommended: Sequence[str]) -> Pair:
    """The language model of the type asked for, else of the first recommended one, and its projector, likewise.

    What is of no type of llama.cpp is left out, but for the only projector. Raises DownloadError, also where a type has
    several files: which are a pair, or which of two quantizations is meant, no name tells for sure.
    """
    found = ggufs(listing)
    if not found:
        raise DownloadError("has no GGUF files", listing.repository)
    named = [file for n, file in found.items() if "mmproj" in n.lower()]
    projectors = _by_type(named) or ({_UNNAMED: named} if len(named) == 1 else {})
    models = _by_type(file for n, file in found.items() if "mmproj" not in n.lower() and not _SPLIT.search(n))
    if not projectors:
        raise DownloadError("has no projector (mmproj) whose name ends in its type", listing.repository)
    if not models:
        raise DownloadError("has no language model in one piece whose name ends in its type", listing.repository)
    quantization, model = _choose("--quantize", quantize, models, (*recommended, *_LANGUAGE), listing.repository)
    projector, other = _choose("--mmproj", mmproj, projectors, _PROJECTORS, listing.repository)
    return Pair(model, quantization, other, projector.lower())


def _choose(
    option: str, asked: str | None, found: Mapping[str, list[RemoteFile]], order: Sequence[str], repository: str
) -> tuple[str, RemoteFile]:
    kind = next((kind.upper() for kind in (order if asked is None else [asked]) if kind.upper() in found), None)
    if kind is None and asked is not None:
        raise DownloadError(f"has no {asked} file for {option}; it has {', '.join(sorted(found))}", repository)
    kind = kind or min(found)
    if len(found[kind]) > 1:
        names = ", ".join(sorted(file.name for file in found[kind]))
        raise DownloadError(f"has several {kind} files for {option}: {names}", repository)
    return kind, found[kind][0]


def _by_type(files: Iterable[RemoteFile]) -> dict[str, list[RemoteFile]]:
    known, found = {*file_types(), *_OTHER_NAMES}, defaultdict[str, list[RemoteFile]](list)
    for file in files:
        if (kind := _type(file.name)) in known:
            found[kind].append(file)
    return found


def _type(name: str) -> str:
    """What stands behind the last - or . of a name: NAME-500M-Instruct-Q8_0.gguf, NAME-Q8_0-mmproj.gguf -> Q8_0."""
    return re.split(r"[-.]", name[: -len(".gguf")].upper().removesuffix("MMPROJ").rstrip("-."))[-1]


def _sharded(listing: Listing) -> bool:
    return SINGLE not in listing.files
