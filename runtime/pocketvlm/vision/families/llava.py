"""LLaVA 1.5 and similar models: every picture is one square tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.messages import Detail
from pocketvlm.vision.encoder_tensors import EncoderTensors
from pocketvlm.vision.families import llava_next
from pocketvlm.vision.family import RGB, PicturePlan, TileSpan
from pocketvlm.vision.fixed_size import read_fixed_size
from pocketvlm.vision.letterbox import Letterbox, read_letterbox


@dataclass(frozen=True)
class Llava:
    """`fit` makes a picture square; `tokens_per_side` is image_size / patch_size."""

    fit: Letterbox
    tokens_per_side: int
    non_causal: bool = False
    image_token: str = "<image>"

    @property
    def tile_tokens(self) -> int:
        return self.tokens_per_side**2

    def control_tokens(self) -> tuple[str, ...]:
        return ()

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:  # noqa: ARG002
        """Return the same plan for every `detail` and limit: a picture always has the same number of tokens."""
        layout = (TileSpan(0, (self.tokens_per_side, self.tokens_per_side)),)
        used = (self.fit.edge, self.fit.edge)
        return PicturePlan(original=size, resizes=(used,), layout=layout, cut=self.fit.view(size))

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:  # noqa: ARG002  # the signature of all families
        return [np.asarray(self.fit.apply(image))]


DECODERS = ("llama", "qwen2")


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "mlp" and not llava_next.has_grids(metadata)


def from_metadata(metadata: dict[str, Any]) -> Llava:
    edge, side = read_fixed_size(metadata, 1)
    return Llava(read_letterbox(metadata, edge), side)


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    return llava_next.tensors(header)
