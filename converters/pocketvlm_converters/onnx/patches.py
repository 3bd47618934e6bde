"""From pixels to patches: what is asked of preprocessing, how patches are cut, how their convolution normalises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.onnx.graph import FLOAT, INPUT, Graph

# Means and deviations of the pixels that OpenAI's CLIP was trained on.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3  # as PIL.Image.Resampling numbers them


@dataclass(frozen=True)
class Normalization:
    """A pixel of 0 to 1 becomes (pixel - mean) / std, channel by channel."""

    mean: Sequence[float]
    std: Sequence[float]


def read_normalization(preprocessor: Section, mean: Sequence[float], std: Sequence[float]) -> Normalization:
    """`mean` and `std` are what the family's image processor takes where its file is silent."""
    found = [preprocessor.numbers(key, list(default)) for key, default in (("image_mean", mean), ("image_std", std))]
    for key, values in zip(("image_mean", "image_std"), found, strict=True):
        if len(values) != 3:
            raise CheckpointError(f"{key} must hold three numbers, not {values}", preprocessor.path)
    if not all(found[1]):
        raise CheckpointError(f"image_std is {found[1]}: nothing can be divided by 0", preprocessor.path)
    return Normalization(*found)


def require_preprocessing(preprocessor: Section, resample: int, **others: float | None) -> None:
    """Refuse what the runtime does otherwise. `others` are more keys or other values; None, and a key is not asked.

    These are the image processor's defaults as well, where its file is silent. Raises CheckpointError.
    """
    usual = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    for key, value in {**usual, "resample": resample, **others}.items():
        if value is not None:
            preprocessor.require(key, value, value)


def cut(graph: Graph, patch: int, group: int, rows: int | str, cols: int | str, crop: int | None = None) -> str:
    """The input as float32 [tiles, patches, patch * patch * 3], raw values of 0 to 255.

    Patches come in squares of `group` x `group`, row by row within a square and square by square, so that merging
    neighbours is a mere reshape later. `rows` and `cols` count squares, or name int64 [1] values that do. What is right
    of or below `crop` pixels is left out, as by a convolution whose steps do not reach the edge.
    """
    value = INPUT
    if crop is not None:
        ends, axes = graph.integers(crop, crop), graph.integers(1, 2)
        value = graph.one("Slice", value, graph.integers(0, 0), ends, axes)
    value = graph.reshape(value, -1, rows, group, patch, cols, group, patch * 3)
    value = graph.one("Transpose", value, perm=[0, 1, 4, 2, 5, 3, 6])
    value = graph.reshape(value, 0, -1, patch**2 * 3)
    return graph.one("Cast", value, to=FLOAT)


def as_kernel(flat: Tensor, patch: int) -> Tensor:
    """A linear layer over patches with channels last, [hidden, patch * patch * 3], as a convolution has it."""
    kernel = flat.data.reshape(-1, patch, patch, 3).transpose(0, 3, 1, 2)
    return replace(flat, data=kernel)


def folded(
    kernel: npt.NDArray[np.float32], pixels: Normalization
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """A patch convolution [hidden, 3, patch, patch] as a matrix [patch * patch * 3, hidden] over raw bytes.

    (byte / 255 - mean) / std is linear: its factor goes into the matrix, its offset is the second value, [hidden].
    """
    scaled = kernel.astype(np.float64) / np.array(pixels.std)[:, None, None]
    offset = -np.einsum("hcyx,c->h", scaled, np.array(pixels.mean))
    matrix = scaled.transpose(2, 3, 1, 0).reshape(-1, len(kernel)) / 255
    return matrix.astype(np.float32), offset
