"""A Hugging Face checkpoint on disk: its configuration and its weights, one tensor in memory at a time."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path

from pocketvlm.errors import CheckpointError
from pocketvlm.files.bundle import Source, sha256_of
from pocketvlm_converters.checkpoint.config import Section, parse_object, short
from pocketvlm_converters.checkpoint.files import read_limited
from pocketvlm_converters.checkpoint.safetensors import BUFFERS, Tensor, read_tensors

__all__ = ["Checkpoint", "Section", "Tensor"]  # what a family needs

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Everything that a conversion may read, besides the shards.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
)
# The largest that such a file may be, in bytes; parsed, it takes ten times as much.
_LIMIT = 16 << 20
_LIMITS = {"tokenizer.json": 256 << 20, INDEX: 64 << 20}
# How weights of quantized checkpoints are called, where the configuration does not tell.
_QUANTIZED = (".qweight", ".qzeros", ".g_idx", ".absmax", ".quant_map", ".SCB", ".weight_scale", ".weight_scale_inv")


def largest(name: str) -> int:
    """Bytes that a side file of this name may have."""
    return _LIMITS.get(name, _LIMIT)


class Checkpoint:
    """A checkpoint folder. Raises CheckpointError where a file is missing, truncated or not what it says."""

    def __init__(self, path: str | Path) -> None:
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
        if self.config.values.get("quantization_config") is not None:
            method = self.config.section("quantization_config").values.get("quant_method")
            reason = f"quantization_config (quant_method {short(method)}): it is quantized already"
            raise CheckpointError(f"{reason}; convert the original checkpoint", self.config.path)
        self.model_type = self.config.text("model_type")
        self.tensors: dict[str, Tensor] = {}
        self.shards = self._find_shards()
        for shard in self.shards:
            for tensor in read_tensors(shard):
                self._add(tensor, shard)
        for name, shard_name in self._index.items():
            if not name.endswith(BUFFERS):
                self._check_listed(name, shard_name)
        self._state = self._look()

    def json(self, name: str, optional: bool = False) -> Section:
        """A JSON file of the folder; empty where it is missing and `optional`."""
        path = self.path / name
        if not self._has(name):
            if optional:
                return Section({}, path)
            raise CheckpointError(f"has no {name}", self.path)
        return Section(parse_object(self._read(name), path), path)

    def text(self, name: str) -> str | None:
        path = self.path / name
        if not self._has(name):
            return None
        try:
            return self._read(name).decode("utf-8")
        except UnicodeError as error:
            raise CheckpointError(f"cannot be read: {error}", path) from None

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor | None:  # noqa: ARG002
        """None where there is none. Whoever asks compares the `shape`; a checkpoint without weights goes by it."""
        return self.tensors.get(name)

    def token_id(self, text: str) -> int | None:
        """Of a token that the tokenizer spells so. Raises TokenizerError."""
        from pocketvlm_converters.checkpoint.reference_tokenizer import FILE, load_reference  # which is above

        number: int | None = load_reference(self.path / FILE).token_to_id(text)
        return number

    def check_unchanged(self) -> None:
        """Raises CheckpointError where a shard is no longer the file that was opened: a download went on, perhaps."""
        for shard, before, now in zip(self.shards, self._state, self._look(), strict=True):
            if before != now:
                raise CheckpointError("has changed while it was converted", shard)

    @cached_property
    def preprocessor(self) -> Section:
        """The image processor's settings, from preprocessor_config.json or inside processor_config.json."""
        found = self.json("preprocessor_config.json", optional=True)
        if not found.values:
            found = self.json("processor_config.json", optional=True).section("image_processor")
        if not found.values:
            raise CheckpointError(
                "has neither preprocessor_config.json nor an image processor in its processor_config.json", self.path
            )
        return found

    @cached_property
    def source(self) -> Source:
        """SHA-256 of every file that a conversion reads; `sha256` is that of `sha256sum`'s listing of them."""
        names = sorted({*filter(self._has, SIDE_FILES), *(shard.name for shard in self.shards)})
        try:
            files = {name: sha256_of(self.path / name) for name in names}
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error}", self.path) from None
        listing = "".join(f"{digest}  {name}\n" for name, digest in files.items())
        name = os.fsencode(self.path.resolve().name).decode("utf-8", "replace")  # a folder may be named in any bytes
        return Source(name=name, sha256=hashlib.sha256(listing.encode()).hexdigest(), files=files)

    @cached_property
    def _index(self) -> dict[str, str]:
        """Shards by tensor; empty without an index, and beside a single file, which transformers prefers."""
        if self._has(SINGLE) or not self._has(INDEX):
            return {}
        weight_map = self.json(INDEX).present("weight_map").values
        for name, shard in weight_map.items():
            plain = isinstance(shard, str) and shard.isprintable() and Path(shard).name == shard and "\\" not in shard
            if not plain or not shard.endswith(".safetensors"):
                raise CheckpointError(
                    f"weight_map: tensor {short(name)} must be in a .safetensors file of the folder, "
                    f"not in {short(shard)}",
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
                    reason = f"shard is missing, one of {len(shards)} that the index names; it holds tensor {tensor}"
                    raise CheckpointError(reason, shard)
            return sorted(shards)
        if not self._has(SINGLE):
            others = [n for n in self._entries if n.endswith((".bin", ".pt", ".pth", ".gguf", ".safetensors"))]
            read = f" (only safetensors of those names are read, not {short(others[0])[1:-1]})" if others else ""
            raise CheckpointError(f"has neither {SINGLE} nor {INDEX}{self._hint() or read}", self.path)
        return [self.path / SINGLE]

    def _add(self, tensor: Tensor, shard: Path) -> None:
        other = self.tensors.setdefault(tensor.name, tensor)
        if other is not tensor:
            assert other.path is not None
            raise CheckpointError(f"tensor {tensor.name} is in {other.path.name} as well", shard)
        if tensor.name.endswith(_QUANTIZED):
            raise CheckpointError(f"tensor {tensor.name}: is quantized already; convert the original checkpoint", shard)

    def _check_listed(self, name: str, shard: str) -> None:
        path = self.path / shard
        found = self.tensors.get(name)
        if found is None:
            raise CheckpointError(f"tensor {short(name)[1:-1]} is missing: the index says that it is here", path)
        if found.path is not None and found.path != path:
            raise CheckpointError(
                f"tensor {name} is missing: the index says that it is here, but it is in {found.path.name}", path
            )

    def _read(self, name: str) -> bytes:
        return read_limited(self.path / name, largest(name))

    def _has(self, name: str) -> bool:
        """Whether there is anything of this name, be it a link to nothing, which is an error and not an absence."""
        return os.path.lexists(self.path / name)

    def _look(self) -> list[tuple[int, int, int]]:
        try:
            return [(at.st_ino, at.st_size, at.st_mtime_ns) for at in map(Path.stat, self.shards)]
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error}", self.path) from None

    def _hint(self) -> str:
        """What the folder is instead, where that can be told from the names in it."""
        if "adapter_config.json" in self._entries:
            return ": it is an adapter (LoRA); merge it into its base model first"
        if "snapshots" in self._entries:
            return ": it is a folder of the hub's cache; give one of those in snapshots"
        return ""
