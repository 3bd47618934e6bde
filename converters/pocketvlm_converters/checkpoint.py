"""A Hugging Face checkpoint on disk: its configuration and its weights, mapped into memory and not read before use.

Reads the safetensors format (an 8-byte length, a JSON header, raw little-endian data) itself, because numpy has no
bfloat16: such tensors are uint16 arrays here.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.bundle import Source, sha256_of
from pocketvlm.errors import CheckpointError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_HEADER_LIMIT = 100 << 20  # bytes, as the format's own library limits it
_BLOCK = 1 << 20  # weights looked at together
# Everything that a conversion may read, besides the shards.
_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    _INDEX,
)


@dataclass(frozen=True)
class Tensor:
    """Weights in row-major order: float32, float16, or bfloat16 as uint16. `data` is a view of a mapped file."""

    name: str
    data: npt.NDArray[Any]
    path: Path | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> str:
        """F32, F16 or BF16."""
        return next(name for name, dtype in _DTYPES.items() if dtype == self.data.dtype)

    def blocks(self, order: npt.NDArray[np.intp] | None = None) -> Iterator[npt.NDArray[Any]]:
        """The weights as [rows, width] blocks of about a million, rows in `order`; a row is the last axis.

        Raises CheckpointError where one of them is NaN or infinite.
        """
        width = self.shape[-1] if self.shape else 1
        rows = self.data.reshape(-1, width)
        step = max(1, _BLOCK // width)
        for start in range(0, len(rows), step):
            block = rows[start : start + step] if order is None else rows[order[start : start + step]]
            if not _finite(block):
                raise CheckpointError(f"tensor {self.name} has NaN or infinite weights", self.path)
            yield block


class Section:
    """One JSON object of the configuration, read with types. Errors name the field, as in `text_config.hidden_size`."""

    def __init__(self, values: Mapping[str, Any], path: Path, where: str = "") -> None:
        self.values = values
        self.path = path
        self._where = where

    def section(self, key: str) -> Section:
        return Section(self._get(key, dict, {}), self.path, f"{self._where}{key}.")

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self._get(key, int, default))

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, (int, float), default)
        if not math.isfinite(value):
            raise CheckpointError(f"{self._where}{key} is {value}", self.path)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._get(key, bool, default))

    def text(self, key: str, default: str | None = None) -> str:
        return str(self._get(key, str, default))

    def numbers(self, key: str, default: list[float] | None = None) -> list[float]:
        values = self._get(key, list, default)
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            raise CheckpointError(f"{self._where}{key} must be a list of numbers, not {values!r}", self.path)
        return [float(value) for value in values]

    def require(self, key: str, expected: Any, default: Any) -> None:
        """Refuse a checkpoint whose `key` is not the one value that the runtime knows."""
        value = self.values.get(key)
        if (default if value is None else value) != expected:
            raise CheckpointError(f"{self._where}{key} is {value!r}; only {expected!r} is supported", self.path)

    def _get(self, key: str, kind: Any, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self._where}{key} is missing", self.path)
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(one.__name__ for one in kinds)
            raise CheckpointError(f"{self._where}{key} is {value!r}, expected {wanted}", self.path)
        return value


class Checkpoint:
    """A checkpoint folder. Raises CheckpointError where a file is missing, truncated or not what it says."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            reason = "is a file; give the checkpoint's folder" if self.path.exists() else "no such checkpoint folder"
            raise CheckpointError(reason, self.path)
        self.config = self.json("config.json")
        if "quantization_config" in self.config.values:
            raise CheckpointError("is quantized already; convert the original checkpoint", self.path)
        self.model_type = self.config.text("model_type")
        self.shards = self._find_shards()
        self.tensors: dict[str, Tensor] = {}
        for shard in self.shards:
            self.tensors.update((tensor.name, tensor) for tensor in _read_header(shard))
        for name, shard_name in self._index.items():
            if name not in self.tensors:
                raise CheckpointError(
                    f"tensor {name} is missing: the index says that it is here", self.path / shard_name
                )

    def json(self, name: str, optional: bool = False) -> Section:
        """A JSON file of the folder; empty where it is missing and `optional`."""
        path = self.path / name
        text = self.text(name)
        if text is None:
            if optional:
                return Section({}, path)
            raise CheckpointError(f"has no {name}", self.path)
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"is not valid JSON: {error}", path) from None
        if not isinstance(values, dict):
            raise CheckpointError("must hold a JSON object", path)
        return Section(values, path)

    def text(self, name: str) -> str | None:
        path = self.path / name
        try:
            return path.read_text(encoding="utf-8") if path.is_file() else None
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot be read: {error}", path) from None

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
        names = sorted(
            {*(name for name in _SIDE_FILES if (self.path / name).is_file()), *(s.name for s in self.shards)}
        )
        try:
            files = {name: sha256_of(self.path / name) for name in names}
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error}", self.path) from None
        listing = "".join(f"{digest}  {name}\n" for name, digest in files.items())
        return Source(name=self.path.resolve().name, sha256=hashlib.sha256(listing.encode()).hexdigest(), files=files)

    @cached_property
    def _index(self) -> dict[str, str]:
        weight_map = self.json(_INDEX, optional=True).section("weight_map").values
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise CheckpointError(
                    f"weight_map.{name} must name a file of the folder, not {shard!r}", self.path / _INDEX
                )
        return dict(weight_map)

    def _find_shards(self) -> list[Path]:
        if self._index:
            shards = [self.path / name for name in sorted(set(self._index.values()))]
            for shard in shards:
                if not shard.is_file():
                    raise CheckpointError(f"shard is missing, one of {len(shards)} that the index names", shard)
            return shards
        if not (self.path / _SINGLE).is_file():
            others = sorted(p.name for p in self.path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".gguf"})
            hint = f" (only safetensors are read, not {others[0]})" if others else ""
            raise CheckpointError(f"has neither {_SINGLE} nor {_INDEX}{hint}", self.path)
        return [self.path / _SINGLE]


def _finite(block: npt.NDArray[Any]) -> bool:
    if block.dtype == _DTYPES["BF16"]:
        return bool(((block & 0x7F80) != 0x7F80).all())  # an exponent of ones is NaN or infinity
    return bool(np.isfinite(block).all())


def _read_header(path: Path) -> Iterator[Tensor]:
    """The tensors of one safetensors file, checked against its size; no weight is read yet."""
    try:
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(f"cannot be read: {error}", path) from None
    length = int.from_bytes(buffer[:8], "little")
    start = 8 + length
    if length > _HEADER_LIMIT or start > len(buffer):
        raise CheckpointError(f"is truncated or not safetensors: its header would end at byte {start:,}", path)
    try:
        header = json.loads(buffer[8:start])
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        listed = [(n, e["dtype"], tuple(map(int, e["shape"])), *map(int, e["data_offsets"])) for n, e in entries]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"has a broken safetensors header: {error!r}", path) from None
    for name, dtype_name, shape, begin, end in listed:
        if not 0 <= begin <= end or start + end > len(buffer):
            raise CheckpointError(f"is truncated: tensor {name} ends at byte {start + end:,} of {len(buffer):,}", path)
        dtype = _DTYPES.get(dtype_name)
        if dtype is None:
            raise CheckpointError(f"tensor {name} is {dtype_name}; F32, F16 and BF16 are read", path)
        if math.prod(shape) * dtype.itemsize != end - begin:
            raise CheckpointError(f"tensor {name} has {end - begin:,} bytes, not those of {dtype_name} {shape}", path)
        data = np.frombuffer(buffer, dtype, math.prod(shape), start + begin).reshape(shape)
        yield Tensor(name, data, path)
