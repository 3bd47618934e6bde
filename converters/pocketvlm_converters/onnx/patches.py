"""From pixels to patches: checks of the preprocessing, cutting of patches, normalization within their convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.onnx.graph import FLOAT, INPUT, Graph

# Means and standard deviations of the pixels that OpenAI's CLIP was trained on.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3  # as PIL.Image.Resampling numbers them


@dataclass(frozen=True)
class Normalization:
    """(pixel - mean) / std for each channel, with pixels from 0 to 1."""

    mean: Sequence[float]
    std: Sequence[float]


def read_normalization(preprocessor: Section, mean: Sequence[float], std: Sequence[float]) -> Normalization:
    """Return the normalization; `mean` and `std` are the defaults of the family's image processor.

    Raises CheckpointError.
    """
    values = [preprocessor.numbers(key, list(default)) for key, default in (("image_mean", mean), ("image_std", std))]
    for key, channels in zip(("image_mean", "image_std"), values, strict=True):
        if len(channels) != 3:
            raise CheckpointError(f"{key} must have three numbers, not {channels}", preprocessor.path)
    if not all(values[1]):
        raise CheckpointError(f"image_std is {values[1]}; it must not contain 0", preprocessor.path)
    return Normalization(*values)


def require_preprocessing(preprocessor: Section, resample: int, **others: float | None) -> None:
    """Raise CheckpointError if the image processor does something that the runtime does differently.

    The checked values are assumed to be the image processor's defaults as well. `others` adds or replaces keys; a key
    with None is not checked.
    """
    usual = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    for key, value in {**usual, "resample": resample, **others}.items():
        if value is not None:
            preprocessor.require(key, value, value)


def cut_patches(
    graph: Graph, patch: int, group: int, rows: int | str, cols: int | str, crop: int | None = None, channels: int = 3
) -> str:
    """Return the input as patches, float32 [tiles, patches, patch * patch * channels], with raw values from 0 to 255.

    Patches are ordered by squares of `group` x `group`, row by row within a square, so that merging neighbours later is
    a reshape. `rows` and `cols` are the numbers of squares, or names of int64 [1] values. Pixels right of or below
    `crop` are dropped, as by a convolution whose last step does not reach the edge.
    """
    value = INPUT
    if crop is not None:
        ends, axes = graph.integers(crop, crop), graph.integers(1, 2)
        value = graph.one("Slice", value, graph.integers(0, 0), ends, axes)
    value = graph.reshape(value, -1, rows, group, patch, cols, group, patch * channels)
    value = graph.one("Transpose", value, perm=[0, 1, 4, 2, 5, 3, 6])
    value = graph.reshape(value, 0, -1, patch**2 * channels)
    return graph.one("Cast", value, to=FLOAT)


def as_kernel(flat: Tensor, patch: int) -> Tensor:
    """Return a linear layer over patches with channels last, [hidden, patch * patch * 3], as a convolution kernel."""
    return flat.view(lambda data: data.reshape(-1, patch, patch, 3).transpose(0, 3, 1, 2))


def fold_normalization(
    kernel: npt.NDArray[np.float32], pixels: Normalization
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Return a patch convolution [hidden, 3 * frames, patch, patch] as a matrix over raw bytes.

    (byte / 255 - mean) / std is linear. Its factor goes into the matrix, [patch * patch * 3 * frames, hidden]; the
    second value returned is its offset, [hidden].
    """
    mean, std = (np.tile(values, kernel.shape[1] // 3) for values in (pixels.mean, pixels.std))
    scaled = kernel.astype(np.float64) / std[:, None, None]
    offset = -np.einsum("hcyx,c->h", scaled, mean)
    matrix = scaled.transpose(2, 3, 1, 0).reshape(-1, len(kernel)) / 255
    return matrix.astype(np.float32), offset
