"""The tensors and metadata of a GGUF file to be written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.folder import Tensor

Value = int | float | bool | str | Sequence[int] | Sequence[float] | Sequence[str]


@dataclass(frozen=True)
class Weight:
    """One tensor of a GGUF file. `order` is the order in which its rows are written; `exact` keeps it in float32."""

    name: str
    tensor: Tensor
    order: npt.NDArray[np.intp] | None = None
    exact: bool = False

    @property
    def width(self) -> int:
        """Length of a row, which is what a type with blocks must divide."""
        return self.tensor.shape[-1]

    @property
    def is_matrix(self) -> bool:
        return len(self.tensor.shape) > 1


@dataclass(frozen=True)
class Part:
    """A GGUF file to be: `architecture` is general.architecture, `metadata` holds complete GGUF keys.

    An int becomes a uint32, a float a float32, a list an array of its items' type.
    """

    architecture: str
    metadata: Mapping[str, Value]
    weights: tuple[Weight, ...]


def weights_sha256(parts: Iterable[Part]) -> str:
    """Of all names, types, shapes and values: the same for one model in whatever files, under whichever naming.

    Raises CheckpointError where a weight is NaN or infinite.
    """
    digest = hashlib.sha256()
    for weight in (weight for part in parts for weight in part.weights):
        digest.update(f"{weight.name} {weight.tensor.dtype} {weight.tensor.shape}\n".encode())
        for block in weight.tensor.blocks(weight.order):
            digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()
