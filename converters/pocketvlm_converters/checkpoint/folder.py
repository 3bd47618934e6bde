"""A Hugging Face checkpoint on disk: its configuration, and its weights, which are memory-mapped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from pocketvlm.errors import CheckpointError, quoted, shortened
from pocketvlm.files.bundle import Source, sha256_of
from pocketvlm_converters.checkpoint.config import Section, parse_object
from pocketvlm_converters.checkpoint.files import SAFE_CHECKPOINT, read_limited, utf8_name
from pocketvlm_converters.checkpoint.lora import Adapters, Lora
from pocketvlm_converters.checkpoint.lora.adapter import CONFIG as ADAPTER_CONFIG
from pocketvlm_converters.checkpoint.quantized import dequantize
from pocketvlm_converters.checkpoint.reference_tokenizer import FILE as TOKENIZER_FILE
from pocketvlm_converters.checkpoint.reference_tokenizer import load_reference
from pocketvlm_converters.checkpoint.safetensors import BUFFERS, Tensor, read_safetensors

__all__ = ["Checkpoint", "Section", "Tensor"]  # the names that families import from here

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# All files that a conversion may read, except the shards.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
)
# Largest accepted size of such a file in bytes; the parsed JSON takes about ten times as much memory.
_SIZE_LIMIT = 16 << 20
_SIZE_LIMITS = {"tokenizer.json": 256 << 20, INDEX: 64 << 20}
# Keys of image processors that change no pixel.
_BOOKKEEPING = frozenset({"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"})
_PICKLED = ("pytorch_model", "model.pt", "consolidated")  # beginnings of the names of pickled weights
_ADAPTER_PARTS = ("base_model.model.", ".base_layer.", ".lora_A.", ".lora_B.", ".lora_embedding_")


def size_limit(name: str) -> int:
    """Return the largest accepted size of the side file `name`, in bytes."""
    return _SIZE_LIMITS.get(name, _SIZE_LIMIT)


def source_of(name: str, files: Mapping[str, str]) -> Source:
    """Return the source of a bundle from its name and the SHA-256 of each file.

    Its `sha256` is that of the listing that `sha256sum` prints for the files, sorted by name.
    """
    listing = "".join(f"{sha256}  {file}\n" for file, sha256 in sorted(files.items()))
    return Source(name=name, sha256=hashlib.sha256(listing.encode()).hexdigest(), files=dict(files))


class Checkpoint:
    """A checkpoint folder. Raises CheckpointError if a file is missing, truncated or malformed."""

    adapters = Adapters()
    _quantization: tuple[str, ...] = ()  # notes about it

    def __init__(self, path: str | Path, lora: Sequence[Lora] = ()) -> None:
        """Read the headers of all files. `lora` are the folders of adapters to merge, each alone or with a factor."""
        self.path = Path(path)
        try:
            if not self.path.is_dir():
                is_file = self.path.exists()
                reason = "is a file; give the checkpoint's folder" if is_file else "no such checkpoint folder"
                raise CheckpointError(reason, self.path)
            self._entries = sorted(path.name for path in self.path.iterdir())
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror}", self.path) from None
        if not self._has("config.json"):
            raise CheckpointError(f"has no config.json{self._hint()}", self.path)
        self.config = self.json("config.json")
        self.model_type = self.config.text("model_type")
        self.tensors: dict[str, Tensor] = {}
        self.shards = self._find_shards()
        for shard in self.shards:
            with self._hint_at_shards():
                tensors = read_safetensors(shard)
            for tensor in tensors:
                self._add(tensor, shard)
        for name, shard_name in self._index.items():
            if not name.endswith(BUFFERS):
                self._check_listed(name, shard_name)
        self.adapters = Adapters(lora)
        for adapter in self.adapters:
            adapter.check_class(self.config.values.get("architectures"))
        self._states = self._stat_files()
        with self._hint_at_shards():
            self.tensors, self._quantization = dequantize(self.config, self.tensors)

    def json(self, name: str, optional: bool = False) -> Section:
        """Return a JSON file of the folder, or an empty section if it is missing and `optional`."""
        path = self.path / name
        if not self._has(name):
            if optional:
                return Section({}, path)
            raise CheckpointError(f"has no {name}", self.path)
        return Section(parse_object(self._read(name), path), path)

    def text(self, name: str) -> str | None:
        """Return a UTF-8 text file of the folder, or None if there is none."""
        path = self.path / name
        if not self._has(name):
            return None
        try:
            return self._read(name).decode("utf-8")
        except UnicodeError as error:
            raise CheckpointError(f"cannot be read: {error}", path) from None

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor | None:  # noqa: ARG002
        """Return the tensor, or None if there is none.

        The caller compares `shape`; only a checkpoint without weights (MetaCheckpoint) uses it here.
        """
        return self.tensors.get(name)

    def token_id(self, text: str) -> int | None:
        """Return the id of the token that the tokenizer spells `text`, or None. Raises TokenizerError."""
        token_id: int | None = load_reference(self.path / TOKENIZER_FILE).token_to_id(text)
        return token_id

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a shard is not the file that was opened, e.g. because a download continued."""
        for file, before, now in zip(self._weight_files, self._states, self._stat_files(), strict=True):
            if before != now:
                raise CheckpointError("changed during the conversion; convert again when it is complete", file)

    @cached_property
    def preprocessor(self) -> Section:
        """The image processor's settings, from the file that transformers takes them from."""
        settings = next((settings for settings in self._image_processors() if settings.values), None)
        if settings is None:
            raise CheckpointError(
                "has neither preprocessor_config.json nor an image processor in its processor_config.json; copy them "
                "from the model that it was made from, because some programs leave them out",
                self.path,
            )
        return settings

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user: what the folder has twice, and what was ignored."""
        notes = []
        if shards := self._unused_shards():
            notes.append(f"the weights are those of {SINGLE}, as in transformers; {shards} is not used")
        used, other = (settings.values for settings in self._image_processors())
        keys = {key for key in {*used, *other} - _BOOKKEEPING if used.get(key) != other.get(key)}
        if used and other and keys:
            notes.append(
                "the image processor is that of processor_config.json, as in transformers; preprocessor_config.json "
                f"differs in {', '.join(sorted(keys))}"
            )
        return (*notes, *self._quantization, *(adapter.note for adapter in self.adapters))

    @cached_property
    def video_processor(self) -> Section:
        """The video processor's settings, from the file that transformers takes them from, or those of pictures."""
        nested = self.json("processor_config.json", optional=True).section("video_processor")
        own = self.json("video_preprocessor_config.json", optional=True)
        return next((settings for settings in (nested, own) if settings.values), self.preprocessor)

    def _image_processors(self) -> tuple[Section, Section]:
        """Return the settings of the image processor in both of their places, in transformers' order."""
        nested = self.json("processor_config.json", optional=True).section("image_processor")
        return nested, self.json("preprocessor_config.json", optional=True)

    @cached_property
    def source(self) -> Source:
        """The folder's name and the SHA-256 of every file that a conversion reads. Those of adapters come last."""
        names = sorted({*filter(self._has, SIDE_FILES), *(shard.name for shard in self.shards)})
        adapters = [(f"lora-{at}", file) for at, adapter in enumerate(self.adapters, 1) for file in adapter.files]
        try:
            files = {name: sha256_of(self.path / name) for name in names}
            files |= {f"{place}/{file.name}": sha256_of(file) for place, file in adapters}
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error}", self.path) from None
        return source_of(utf8_name(self.path.resolve()), files)

    @cached_property
    def _index(self) -> dict[str, str]:
        """The shard of each tensor; empty without an index, or with a single file, which transformers prefers."""
        if self._has(SINGLE) or not self._has(INDEX):
            return {}
        weight_map = self.json(INDEX).present("weight_map").values
        for name, shard in weight_map.items():
            plain = isinstance(shard, str) and shard.isprintable() and Path(shard).name == shard and "\\" not in shard
            if not plain or not shard.endswith(".safetensors"):
                raise CheckpointError(
                    f"weight_map: tensor {quoted(name)} is in {quoted(shard)}; "
                    "expected the name of a .safetensors file of the folder",
                    self.path / INDEX,
                )
        if not weight_map:
            raise CheckpointError("weight_map names no tensors", self.path / INDEX)
        return dict(weight_map)

    def _find_shards(self) -> list[Path]:
        if self._index:
            shards = {self.path / shard: name for name, shard in self._index.items()}
            for shard, tensor in sorted(shards.items()):
                if not os.path.lexists(shard):
                    reason = f"shard is missing, one of {len(shards)} that the index lists; it contains tensor {tensor}"
                    raise CheckpointError(reason, shard)
            return sorted(shards)
        if not self._has(SINGLE):
            others = [n for n in self._entries if n.endswith((".bin", ".pt", ".pth", ".gguf", ".safetensors"))]
            other = f" (only safetensors of these names are supported, not {shortened(others[0])})" if others else ""
            if any(name.startswith(_PICKLED) for name in others):
                other += f"; {SAFE_CHECKPOINT}"
            raise CheckpointError(f"has neither {SINGLE} nor {INDEX}{self._hint() or other}", self.path)
        return [self.path / SINGLE]

    @contextmanager
    def _hint_at_shards(self) -> Iterator[None]:
        """Let an error about weights say where sound ones may be instead."""
        try:
            yield
        except CheckpointError as error:
            if not (other := self._unused_shards()):
                raise
            hint = f"transformers uses {SINGLE}, too, and not {other}; remove the one that is wrong"
            raise CheckpointError(f"{error.message}; {hint}", self.path / SINGLE) from None

    def _unused_shards(self) -> str:
        """Return the name of a shard that lies in the same folder as the single file, or ""."""
        if not (self._has(SINGLE) and self._has(INDEX)):
            return ""
        shards = {name for name in self.json(INDEX).section("weight_map").values.values() if isinstance(name, str)}
        return next((name for name in sorted(shards & {*self._entries}) if name != SINGLE), "")

    def _add(self, tensor: Tensor, shard: Path) -> None:
        other = self.tensors.setdefault(tensor.name, tensor)
        if other is not tensor:
            assert other.path is not None
            raise CheckpointError(f"tensor {tensor.name} is in {other.path.name} as well", shard)
        if any(part in tensor.name for part in _ADAPTER_PARTS):
            reason = f"tensor {tensor.name} is named as with an adapter (LoRA, PEFT)"
            raise CheckpointError(
                f"{reason}; give the folder that PEFT saves with lora=, or merge it first (merge_and_unload)", shard
            )

    def _check_listed(self, name: str, shard: str) -> None:
        path = self.path / shard
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"tensor {shortened(name)} is missing: the index says that it is here", path)
        if tensor.path is not None and tensor.path != path:
            raise CheckpointError(
                f"tensor {name} is missing: the index says that it is here, but it is in {tensor.path.name}", path
            )

    def _read(self, name: str) -> bytes:
        return read_limited(self.path / name, size_limit(name))

    def _has(self, name: str) -> bool:
        """Return whether the name exists. A broken symbolic link does: opening it is an error, not an absent file."""
        return os.path.lexists(self.path / name)

    @property
    def _weight_files(self) -> list[Path]:
        return [*self.shards, *(file for adapter in self.adapters for file in adapter.files)]

    def _stat_files(self) -> list[tuple[int, int, int]]:
        try:
            return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, self._weight_files)]
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error}", self.path) from None

    def _hint(self) -> str:
        """Return what the folder is instead, if the names of its files show that, as the end of an error."""
        if ADAPTER_CONFIG in self._entries:
            base = self.json(ADAPTER_CONFIG).values.get("base_model_name_or_path")
            of = f" of {quoted(base)}" if isinstance(base, str) and base else ""
            return f": it is an adapter (LoRA){of}; convert that model, and give this folder with lora="
        if trained := [name for name in self._entries if name.startswith("checkpoint-")]:
            return f": it is a folder of a training; give one of the checkpoints in it, such as {quoted(trained[-1])}"
        if "snapshots" in self._entries:
            return ": it is a folder of the hub's cache; give one of the folders in snapshots"
        return ""
