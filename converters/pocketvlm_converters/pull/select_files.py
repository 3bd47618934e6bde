"""Choose the files of a repository to download. Their names are untrusted: only plain names of known kinds are used."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import DownloadError, quoted, shortened
from pocketvlm.native.quantize import file_types
from pocketvlm_converters.checkpoint.config import parse_object
from pocketvlm_converters.checkpoint.folder import INDEX, SIDE_FILES, SINGLE, size_limit
from pocketvlm_converters.checkpoint.lora.adapter import CONFIG as ADAPTER_CONFIG
from pocketvlm_converters.pull.hub import Listing, RemoteFile

_PLAIN = re.compile(r"[A-Za-z0-9][\w.+-]*")  # no folders, no hidden files
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")  # a GGUF model in several files
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PROJECTORS = ("q8_0", "f16", "bf16", "f32")  # in order of preference: the smallest first
_ALIASES = ("Q3_K", "Q4_K", "Q5_K")  # llama-quantize's other names for Q3_K_M, Q4_K_M and Q5_K_M
_UNNAMED = "UNKNOWN"  # type of a projector whose name does not end in one
_LANGUAGE = ("Q4_K_M", "Q8_0", "F16", "BF16", "F32")


@dataclass(frozen=True)
class Pair:
    """Ready GGUF files, with the types that their names end in."""

    model: RemoteFile
    quantization: str
    mmproj: RemoteFile
    projector: str

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return (self.model, self.mmproj)


def side_files(listing: Listing) -> list[RemoteFile]:
    """Return all files of a checkpoint except its weights. Raises DownloadError if it cannot be converted."""
    if ADAPTER_CONFIG in listing.files and SINGLE not in listing.files and INDEX not in listing.files:
        reason = "is an adapter (LoRA); download it, and convert the model that it was trained on with lora="
        raise DownloadError(reason, listing.repository)
    if "config.json" not in listing.files:
        advice = "; it has GGUF files, use gguf=True" if ggufs(listing) else ""
        raise DownloadError(f"is not a checkpoint: it has no config.json{advice}", listing.repository)
    if SINGLE not in listing.files and INDEX not in listing.files:
        pickles = [name for name in listing.files if name.endswith(_PICKLES)]
        reason = f", only {shortened(pickles[0])}: pickles can run code and are never downloaded" if pickles else ""
        raise DownloadError(f"has neither {SINGLE} nor {INDEX}{reason}", listing.repository)
    names = (name for name in SIDE_FILES if name != INDEX or _sharded(listing))
    files = [listing.files[name] for name in names if name in listing.files]
    for file in files:
        if file.size > size_limit(file.name):
            reason = f"has {file.size:,} bytes; at most {size_limit(file.name):,} are accepted"
            raise DownloadError(reason, f"{listing.repository}/{file.name}")
    return files


def weight_files(listing: Listing, folder: Path) -> list[RemoteFile]:
    """Return the shards that the index in `folder` lists, or the single file of weights. Raises DownloadError."""
    if not _sharded(listing):
        return [listing.files[SINGLE]]
    path, label = folder / INDEX, f"{listing.repository}/{INDEX}"
    weight_map = parse_object(path.read_bytes(), path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DownloadError("weight_map names no tensors", label)
    files = []
    for name in sorted({str(shard) for shard in weight_map.values()}):
        if not _PLAIN.fullmatch(name) or not name.endswith(".safetensors"):
            reason = f"weight_map has {quoted(name)}; expected the name of a .safetensors file of the repository"
            raise DownloadError(reason, label)
        if name not in listing.files:
            raise DownloadError("is missing from the repository; the index lists it", f"{listing.repository}/{name}")
        files.append(listing.files[name])
    return files


def ggufs(listing: Listing) -> dict[str, RemoteFile]:
    """Return the GGUF files with plain names, by name."""
    return {n: file for n, file in listing.files.items() if _PLAIN.fullmatch(n) and n.lower().endswith(".gguf")}


def pair(listing: Listing, quantize: str | None, mmproj: str | None, recommended: Sequence[str]) -> Pair:
    """Choose the language model of type `quantize`, or of the first recommended type, and the projector likewise.

    Files whose names do not end in a type of llama.cpp are ignored, except a single projector. Raises DownloadError,
    also if there are several files of a type: their names do not tell which of them belong together.
    """
    files = ggufs(listing)
    if not files:
        raise DownloadError("has no GGUF files", listing.repository)
    mmprojs = [file for name, file in files.items() if "mmproj" in name.lower()]
    projectors = _by_type(mmprojs) or ({_UNNAMED: mmprojs} if len(mmprojs) == 1 else {})
    models = _by_type(file for name, file in files.items() if "mmproj" not in name.lower() and not _SPLIT.search(name))
    if not projectors:
        raise DownloadError("has no projector (mmproj) whose name ends in its type", listing.repository)
    if not models:
        raise DownloadError("has no language model in one piece whose name ends in its type", listing.repository)
    quantization, model = _choose("quantize=", quantize, models, (*recommended, *_LANGUAGE), listing.repository)
    projector, mmproj_file = _choose("mmproj=", mmproj, projectors, _PROJECTORS, listing.repository)
    return Pair(model, quantization, mmproj_file, projector.lower())


def _choose(
    option: str, requested: str | None, files: Mapping[str, list[RemoteFile]], preferred: Sequence[str], repository: str
) -> tuple[str, RemoteFile]:
    """Return the type and the file for an option: of the requested type, else the first preferred one, else any."""
    candidates = preferred if requested is None else [requested]
    kind = next((kind.upper() for kind in candidates if kind.upper() in files), None)
    if kind is None and requested is not None:
        raise DownloadError(f"has no {requested} file for {option}; it has {', '.join(sorted(files))}", repository)
    kind = kind or min(files)
    if len(files[kind]) > 1:
        names = ", ".join(sorted(file.name for file in files[kind]))
        raise DownloadError(f"has several {kind} files for {option}: {names}", repository)
    return kind, files[kind][0]


def _by_type(files: Iterable[RemoteFile]) -> dict[str, list[RemoteFile]]:
    known, by_type = {*file_types(), *_ALIASES}, defaultdict[str, list[RemoteFile]](list)
    for file in files:
        if (kind := _type(file.name)) in known:
            by_type[kind].append(file)
    return by_type


def _type(name: str) -> str:
    """Return the part after the last - or .: Q8_0 for NAME-500M-Instruct-Q8_0.gguf and for NAME-Q8_0-mmproj.gguf."""
    return re.split(r"[-.]", name[: -len(".gguf")].upper().removesuffix("MMPROJ").rstrip("-."))[-1]


def _sharded(listing: Listing) -> bool:
    return SINGLE not in listing.files
