"""The tensors and metadata of a GGUF file before it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.files.gguf_values import Value as Value  # the type of a key, for those who use `Part`
from pocketvlm_converters.checkpoint.folder import Tensor


@dataclass(frozen=True)
class Weight:
    """One tensor of a GGUF file. `exact` keeps it in float32.

    `order` and `columns` are the orders in which its rows, and the values of each row, are written.
    """

    name: str
    tensor: Tensor
    order: npt.NDArray[np.intp] | None = None
    exact: bool = False
    columns: npt.NDArray[np.intp] | None = None

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """Yield the values in the order in which they are written, as `Tensor.blocks` does."""
        for block in self.tensor.blocks(self.order):
            yield block if self.columns is None else block[:, self.columns]

    @property
    def width(self) -> int:
        """Length of a row; it must be a multiple of a quantized type's block size."""
        return self.tensor.shape[-1]

    @property
    def is_matrix(self) -> bool:
        return len(self.tensor.shape) > 1


@dataclass(frozen=True)
class Part:
    """The content of a GGUF file: `architecture` is general.architecture, `metadata` maps complete GGUF keys to values.

    An int is written as uint32, a float as float32, a list as an array of its items' type.
    """

    architecture: str
    metadata: Mapping[str, Value]
    weights: tuple[Weight, ...]


def vocabulary_size(language: Part) -> int:
    """Return the number of tokens of a language model: the rows of its token embeddings."""
    return next(weight.tensor.shape[0] for weight in language.weights if weight.name == "token_embd.weight")


def weights_sha256(parts: Iterable[Part]) -> str:
    """Return the SHA-256 of all GGUF names, types, shapes and values.

    It does not depend on the checkpoint's tensor names or shards. Raises CheckpointError if a weight is NaN or
    infinite.
    """
    digest = hashlib.sha256()
    for weight in (weight for part in parts for weight in part.weights):
        digest.update(f"{weight.name} {weight.tensor.dtype} {weight.tensor.shape}\n".encode())
        for block in weight.blocks():
            digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()
