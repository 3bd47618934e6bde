"""GLM-4.1V, GLM-4.6V-Flash and GLM-OCR: one tile of about the picture's own size.

The chat template writes the tokens around it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.vision.dynamic_size import DynamicSize, read_dynamic
from pocketvlm.vision.encoder_tensors import (
    EncoderTensors,
    Shapes,
    axial_sizes,
    norm,
    rows,
    second_frame,
    square_table,
)

DECODERS = ("glm4",)


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "glm4v"


def from_metadata(metadata: dict[str, Any]) -> DynamicSize:
    family = read_dynamic(
        metadata,
        min_pixels=112 * 112 // 2,  # as in the published checkpoint, for one of two frames
        max_pixels=9633792 // 2,
        image_token="<|image|>",
        around=("<|begin_of_image|>", "<|end_of_image|>"),
    )
    return replace(family, edges_first=True)


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has.

    With a table of positions, the metadata state the projector's MLP and not that of the layers.
    """
    sizes, inner = axial_sizes(header), rows(header, "mm.up.weight")
    positioned: Shapes = {}
    if sizes.positions:
        sizes = replace(sizes, inner=rows(header, "v.blk.0.ffn_up.weight"))
        positioned = {**square_table(header, sizes), "v.norm_embd.weight": (sizes.hidden,)}
    merge, output = sizes.merge, sizes.output
    return EncoderTensors(
        sizes,
        required={
            **second_frame(sizes),
            **positioned,
            "v.patch_embd.bias": (sizes.hidden,),
            "mm.patch_merger.weight": (merge, merge, sizes.hidden, output),
            "mm.patch_merger.bias": (output,),
            "mm.model.fc.weight": (output, output),
            "mm.gate.weight": (output, inner),
            "mm.up.weight": (output, inner),
            "mm.down.weight": (inner, output),
            **norm("mm.post_norm", output),
        },
        layer={"attn_qkv.weight": (sizes.hidden, 3 * sizes.hidden)},
        layer_optional={
            "attn_qkv.bias": (3 * sizes.hidden,),
            **dict.fromkeys(("attn_q_norm.weight", "attn_k_norm.weight"), (sizes.head,)),
        },
        axes=True,
    )
