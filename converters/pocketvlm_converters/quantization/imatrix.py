"""Importance matrices: for each column of a weight matrix, the mean of its squared inputs.

Both formats of llama.cpp's tools/imatrix are read: GGUF, and the legacy format that most files on the hub have. GGUF is
written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from pocketvlm.errors import OutputError, QuantizationError, shortened
from pocketvlm.files.bundle import sha256_of
from pocketvlm_converters.gguf import read_tensors
from pocketvlm_converters.weights import Weight

_SUMS, _COUNTS = ".in_sum2", ".counts"
_LAYERS = "blk."
_BLOCK = 256  # columns that libllama quantizes together, or a multiple of these
_LEAST = 2.0**-30  # the least importance, where the mean of a block is about 1
# Limits of the legacy format, which has no magic number: beyond them a file is something else.
_MAX_ENTRIES, _MAX_NAME_LENGTH, _MAX_VALUES = 1 << 17, 255, 1 << 26


@dataclass(frozen=True)
class Matrix:
    """`means` maps names of GGUF tensors to float32 [in] or [experts * in]; `sha256` is the hash of the file `path`."""

    path: Path
    sha256: str
    means: Mapping[str, npt.NDArray[np.float32]]

    def check_fits(self, weights: Iterable[Weight]) -> None:
        """Raise QuantizationError, naming a tensor, if this is the matrix of another model."""
        counts = column_counts(weights)
        for name, values in self.means.items():
            if name not in counts:
                if name.startswith(_LAYERS):
                    raise self._wrong_model(f"it has {name}, the model does not")
            elif values.size != counts[name]:
                raise self._wrong_model(f"its {name} has {values.size:,} columns, the model's has {counts[name]:,}")
        missing = next((name for name in counts if name not in self.means), None)
        if missing is not None:
            raise self._wrong_model(f"it lacks {missing}")

    def save(self, path: Path) -> None:
        """Write the .npz file that `quantize_gguf` reads."""
        with path.open("wb") as file:
            # Only weights: any other name could be one of savez's own keyword arguments.
            weights = {name: usable(values) for name, values in self.means.items() if name.endswith(".weight")}
            np.savez(file, allow_pickle=False, **weights)

    def notes(self) -> list[str]:
        """Return a note for the user about tensors of which the matrix knows nothing, if there are any."""
        zeros = [name for name, values in self.means.items() if name.endswith(".weight") and not values.any()]
        if not zeros:
            return []
        more = f" and {len(zeros) - 1} more" if len(zeros) > 1 else ""
        return [f"the importance matrix has only zeros for {zeros[0]}{more}: quantized as without a matrix"]

    def _wrong_model(self, reason: str) -> QuantizationError:
        return QuantizationError(f"is the importance matrix of another model: {reason}", self.path)


def usable(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return importances [columns] with which libllama loses no column.

    It makes zeros of blocks whose columns all have the importance 0, and of those where float32 cannot hold the squares
    of sums. Only the relation of columns within a block counts, so each block is scaled to a mean of about 1, by a
    power of two, which rounds nothing. Then importances have a least value, far below those of columns that matter.
    """
    padded = np.zeros(-(-values.size // _BLOCK) * _BLOCK, np.float32)
    padded[: values.size] = values
    blocks = padded.reshape(-1, _BLOCK)
    _, exponents = np.frexp(blocks.astype(np.float64).mean(axis=1, keepdims=True))
    scaled = np.ldexp(blocks.astype(np.float64), -exponents)
    columns: npt.NDArray[np.float32] = np.maximum(scaled, _LEAST).astype(np.float32).reshape(-1)[: values.size]
    return columns


def column_counts(weights: Iterable[Weight]) -> dict[str, int]:
    """Return the matrices that an importance matrix must cover, with the number of columns of all their experts."""
    shapes = {w.name: w.tensor.shape for w in weights if w.is_matrix and not w.exact and w.name.startswith(_LAYERS)}
    return {name: shape[-1] * (shape[0] if len(shape) > 2 else 1) for name, shape in shapes.items()}


def read_matrix(path: Path) -> Matrix:
    """Read either format. Raises QuantizationError for another kind of file, a truncated file and impossible values."""
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        means = _read_gguf(path) if is_gguf else _read_legacy(path)
        digest = sha256_of(path)
    except OSError as error:
        if isinstance(error, OutputError):  # from the GGUF reader
            raise QuantizationError(error.message, path) from None
        raise QuantizationError(f"the importance matrix cannot be read: {error.strerror}", path) from None
    for name, values in means.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise QuantizationError(
                f"the importance matrix has impossible values for {shortened(name)}: must be finite and >= 0", path
            )
    return Matrix(path, digest, means)


def write_matrix(
    path: Path, sums: Mapping[str, npt.NDArray[Any]], counts: Mapping[str, npt.NDArray[Any]], dataset: str, chunks: int
) -> None:
    """Write a matrix as GGUF: by tensor, `sums` [matrices, in] of squared inputs and `counts` [matrices] of inputs.

    `dataset` names the samples it was computed on, `chunks` is their number.
    """
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()  # an importance matrix has no general.architecture
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, [dataset])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, chunks)
    longest = max((int(count.max()) for count in counts.values()), default=0)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, max(1, longest // max(1, chunks)))
    for name in sorted(sums):
        writer.add_tensor(name + _SUMS, sums[name].astype(np.float32))
        writer.add_tensor(name + _COUNTS, counts[name].astype(np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_gguf(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    entries = {tensor.name: tensor for tensor in read_tensors(path)}
    names = [name.removesuffix(_SUMS) for name in entries if name.endswith(_SUMS)]
    if not names:
        raise QuantizationError("is a GGUF file, but not an importance matrix", path)
    data = np.memmap(path, np.uint8, "r")

    def values(name: str) -> npt.NDArray[np.float32]:
        entry = entries.get(name)
        if entry is None or entry.kind != "F32" or not all(entry.shape):
            raise QuantizationError(f"the importance matrix lacks {name} in float32", path)
        size = 4 * int(np.prod(entry.shape))
        return np.frombuffer(data[entry.offset : entry.offset + size].tobytes(), "<f4").reshape(entry.shape)

    means = {}
    for name in names:
        sums, counts = values(name + _SUMS), values(name + _COUNTS).reshape(-1)
        if sums.size % counts.size:
            raise QuantizationError(f"the importance matrix has {counts.size} counts for {name}", path)
        counts = counts[:, None]
        # An expert that received no inputs: all its columns are equally important.
        mean = np.where(counts > 0, sums.reshape(len(counts), -1) / np.maximum(counts, 1), 1)
        means[name] = mean.reshape(-1).astype(np.float32)
    return means


def _read_legacy(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read the legacy format.

    It is the int32 number of entries, then for each the int32 length of its name, the name, the int32 number of calls,
    the int32 number of values and the values: float32 mean * calls.
    """
    data = path.read_bytes()
    at, means = 0, {}

    def number() -> int:
        nonlocal at
        (value,) = struct.unpack_from("<i", data, at)
        at += 4
        return int(value)

    try:
        entries = number()
        _require(0 < entries <= _MAX_ENTRIES)
        for _ in range(entries):
            length = number()
            _require(0 < length <= _MAX_NAME_LENGTH)
            name = data[at : at + length].decode()
            _require(name.isprintable())
            at += length
            calls, size = number(), number()
            _require(0 < size <= _MAX_VALUES)
            values = np.frombuffer(data, "<f4", size, at)  # ValueError if the file ends earlier
            at += 4 * size
            means[name] = (values / max(calls, 1)).astype(np.float32)
    except (struct.error, ValueError):
        if not means:
            raise QuantizationError("is not an importance matrix", path) from None
        raise QuantizationError(
            f"the importance matrix is truncated or damaged after {len(means)} of {entries} tensors", path
        ) from None
    return means


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError
