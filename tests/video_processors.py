"""transformers' video processors over Pillow, which resizes in place of torchvision; the rest is their own code."""

from __future__ import annotations

import sys
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import utils
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict

_EMPTY = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2", "torchvision.transforms.v2.functional")


class _Pillow(TorchvisionBackend):
    """In place of torchvision: uint8 [..., 3, height, width] in, as many out."""

    def resize(self, image: Any, size: Any, resample: Any = None, **_: Any) -> Any:
        frames = image.reshape(-1, *image.shape[-3:])
        pictures = (Image.fromarray(one.permute(1, 2, 0).numpy()) for one in frames)
        filter = Image.Resampling(int(resample))
        made = [np.array(one.resize((size.width, size.height), filter)) for one in pictures]
        resized = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
        return resized.reshape(*image.shape[:-2], size.height, size.width)

    def normalize(self, image: Any, mean: Any, std: Any, **_: Any) -> Any:
        mean, std = (torch.as_tensor(values).view(-1, 1, 1) for values in (mean, std))
        return (image - mean) / std

    def convert_to_rgb(self, image: Any, *_: Any, **__: Any) -> Any:
        return image


def video_processor(family: str, name: str) -> Any:
    """Return the reference's class over Pillow; its module imports torchvision, but only names types of it."""
    empty = {name: ModuleType(name) for name in _EMPTY}
    for parent, child in pairwise(_EMPTY):
        setattr(empty[parent], child.rpartition(".")[2], empty[child])
    empty[_EMPTY[-1]].InterpolationMode = Any  # type: ignore[attr-defined]
    sys.modules.update(empty)
    known, utils.is_torchvision_v2_available = utils.is_torchvision_v2_available, lambda: True
    try:
        module = import_module(f"transformers.models.{family}.video_processing_{family}")
    finally:
        utils.is_torchvision_v2_available = known
        for place in empty:
            del sys.modules[place]
    reference = getattr(module, name)
    members = {"__module__": __name__, "_module": module}
    return type(name, (_First, reference, _Pillow), members)


class _First:
    """What the base class of video processors takes from torchvision itself."""

    _module: Any

    def convert_to_rgb(self, video: Any) -> Any:
        return video

    def aspect_ratio_preserving_resize(self, video: Any, resample: Any, **sizes: int) -> Any:
        height, width = self._module.get_aspect_ratio_preserving_size(*video.shape[-2:], **sizes)
        return _Pillow.resize(self, video, SizeDict(height=height, width=width), resample)  # type: ignore[arg-type]
