"""Check the tensors of an mmproj file before libmtmd reads it.

libmtmd loads tensors of any shape, and ends the process where a product of two does not fit or a tensor that it counts
on is missing. The names are libmtmd's (clip-impl.h), the shapes those that its graphs need (tools/mtmd/models). Each
family states its projector; the layers before it are the same for all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

from pocketvlm.errors import ModelFormatError, quoted
from pocketvlm.files.gguf_header import BOOL, FLOAT32, STRING, UINT32, GGUFHeader, TensorInfo

Shapes = Mapping[str, tuple[int, ...]]  # in ggml's order, fastest dimension first, by the tensors' names
TABLE, CLASS_TOKEN = "v.position_embd.weight", "v.class_embd"
SCALE, MERGE = "projector.scale_factor", "spatial_merge_size"  # keys of how many patches are merged
_LAYER = re.compile(r"v\.blk\.(\d{1,9})\.(.+)")
_NEEDED = ("attn_out.weight", "ffn_up.weight", "ffn_down.weight")  # in every layer
_BOUND = re.compile(r"\.(input|output)_(min|max)$")  # of values that enter and leave a matrix
_F16 = 1  # GGML_TYPE_F16
_VISION, _EPSILON = "clip.vision.", "clip.vision.attention.layer_norm_epsilon"
_MAX_WIDTH, _MAX_LAYERS, _MAX_EDGE, _MAX_PATCH = 1 << 17, 512, 1 << 14, 1 << 10  # far above what models have
# libmtmd asserts the types of single values. It throws, and so reports, for those of lists.
_TYPES = (
    dict.fromkeys(("general.name", "general.description", "clip.projector_type", f"{_VISION}projector_type"), STRING)
    | {f"{_VISION}mm_patch_merge_type": STRING, _EPSILON: FLOAT32}
    | {f"clip.has_{part}_encoder": BOOL for part in ("vision", "audio", "gen_audio")}
    | {f"clip.use_{name}": BOOL for name in ("gelu", "silu")}
    | {
        f"{_VISION}{key}": UINT32
        for key in (
            "embedding_length feed_forward_length block_count projection_dim attention.head_count "
            "attention.head_count_kv attention.head_dim image_size patch_size"
        ).split()
    }
)
# The same for keys that some kinds of projectors have.
_TYPES_OF_SOME = {
    f"{_VISION}{key}": UINT32
    for key in (
        "image_min_pixels image_max_pixels preproc_min_tiles preproc_max_tiles preproc_image_size "
        f"{SCALE} {MERGE} n_wa_pattern"
    ).split()
}
_TYPE_NAMES = {UINT32: "uint32", FLOAT32: "float32", BOOL: "bool", STRING: "text"}


@dataclass(frozen=True)
class EncoderSizes:
    """Sizes of an encoder. `side` patches of `patch` pixels are along the edge of a tile; `inner` is the MLP's width.

    `merge` patches along either edge become one embedding, `output` wide. `positions` are in the table of positions, 0
    without one.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    patch: int
    side: int
    merge: int
    output: int
    positions: int

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def merged(self) -> int:
        """The width of the patches that become one embedding, side by side."""
        return self.hidden * self.merge**2


@dataclass(frozen=True)
class EncoderTensors:
    """What an encoder has beyond the layers that all have.

    libmtmd counts on the `required` tensors; it leaves out what it does with the `optional` ones if they are missing.
    `layer` and `layer_optional` are the same for each layer, named without `v.blk.N.`. With `axes`, the language model
    must have rotary sections for rows and columns.
    """

    sizes: EncoderSizes
    required: Shapes
    optional: Shapes = field(default_factory=dict)
    layer: Shapes = field(default_factory=dict)
    layer_optional: Shapes = field(default_factory=dict)
    axes: bool = False


def linear(name: str, inner: int, outer: int) -> Shapes:
    """Return a matrix with its bias."""
    return {f"{name}.weight": (inner, outer), f"{name}.bias": (outer,)}


def norm(name: str, width: int) -> Shapes:
    """Return scale and shift of a norm."""
    return dict.fromkeys((f"{name}.weight", f"{name}.bias"), (width,))


def separate(sizes: EncoderSizes) -> Shapes:
    """Return the matrices of queries, keys and values."""
    return {f"attn_{x}.weight": (sizes.hidden, sizes.hidden) for x in "qkv"}


def fused(sizes: EncoderSizes) -> Shapes:
    """Return the one matrix of queries, keys and values, with its bias."""
    return linear("attn_qkv", sizes.hidden, 3 * sizes.hidden)


def merger(sizes: EncoderSizes) -> Shapes:
    """Return a projector of two layers over the merged patches."""
    return {**linear("mm.0", sizes.merged, sizes.merged), **linear("mm.2", sizes.merged, sizes.output)}


def second_frame(sizes: EncoderSizes) -> Shapes:
    """Return the patch convolution of the second frame, for encoders of two frames."""
    return {"v.patch_embd.weight.1": _kernel(sizes)}


def rows(header: GGUFHeader, name: str) -> int:
    """Return the output width of a matrix that only its own shape states, 0 where it is missing."""
    shape = next((tensor.shape for tensor in header.tensors if tensor.name == name), ())
    return shape[1] if len(shape) > 1 else 0


def table(sizes: EncoderSizes, more: int = 0) -> Shapes:
    """Return a table with the position of each patch of a tile, and of `more` tokens."""
    return {TABLE: (sizes.hidden, sizes.side**2 + more)}


def square_table(header: GGUFHeader, sizes: EncoderSizes) -> Shapes:
    """Return a table of positions that is resampled to other numbers of patches. It must be a square."""
    if math.isqrt(sizes.positions) ** 2 != sizes.positions:
        raise ModelFormatError(f"{TABLE} has {sizes.positions} rows, which is not a square number", header.path)
    return {TABLE: (sizes.hidden, sizes.positions)}


def read_sizes(header: GGUFHeader, merge: str = "", default: int | None = None, *, least: int = 1) -> EncoderSizes:
    """Read the sizes from an mmproj file's metadata.

    `merge` is the key of how many patches are merged, at `least`; "" where none are. `default` is for files without it.
    Raises ModelFormatError for a value that no encoder has.
    """

    def integer(key: str, most: int, default: int | None = None, least: int = 1) -> int:
        value = header.metadata.get(f"{_VISION}{key}", default)
        if not isinstance(value, int) or not least <= value <= most:
            raise ModelFormatError(f"{_VISION}{key} is {quoted(value)}, expected {least} to {most:,}", header.path)
        return value

    patch = integer("patch_size", _MAX_PATCH)
    hidden, heads = integer("embedding_length", _MAX_WIDTH), integer("attention.head_count", _MAX_WIDTH)
    if hidden % heads:
        raise ModelFormatError(
            f"{_VISION}attention.head_count is {heads}: {_VISION}embedding_length {hidden} is not a multiple of it",
            header.path,
        )
    return EncoderSizes(
        hidden=hidden,
        inner=integer("feed_forward_length", _MAX_WIDTH),
        layers=integer("block_count", _MAX_LAYERS),
        heads=heads,
        patch=patch,
        side=integer("image_size", _MAX_EDGE) // patch,
        merge=integer(merge, _MAX_PATCH, default, least) if merge else 1,
        output=integer("projection_dim", _MAX_WIDTH),
        positions=rows(header, TABLE),
    )


def axial_sizes(header: GGUFHeader) -> EncoderSizes:
    """Read the sizes of an encoder that rotates by rows and columns and merges 2 x 2 patches, as libmtmd has fixed it.

    Raises ModelFormatError.
    """
    sizes = read_sizes(header, MERGE, 2)
    if sizes.merge != 2:
        raise ModelFormatError(f"{_VISION}{MERGE} is {sizes.merge}, libmtmd supports 2", header.path)
    if sizes.head % 4:
        raise ModelFormatError(
            f"has heads of {sizes.head} values, which cannot be rotated by rows and columns", header.path
        )
    return sizes


def check_values(header: GGUFHeader) -> None:
    """Raise ModelFormatError where a value of the metadata is not what libmtmd and ggml assert for all projectors."""
    _check_types(header, _TYPES)
    epsilon = header.metadata.get(_EPSILON, 0.0)
    if not 0 <= epsilon < math.inf:
        raise ModelFormatError(f"{_EPSILON} is {epsilon}, expected 0 or more", header.path)


def _check_types(header: GGUFHeader, types: Mapping[str, int]) -> None:
    for key, kind in types.items():
        if header.types.get(key, kind) != kind:
            value = header.metadata[key]
            raise ModelFormatError(f"{key} is {quoted(value)}, expected {_TYPE_NAMES[kind]}", header.path)


def check_tensors(header: GGUFHeader, tensors: EncoderTensors) -> None:
    """Check the tensors of a projector of a known kind, and the types of its own keys.

    Raises ModelFormatError for the first tensor that is missing, unknown, or of another shape or type.
    """
    _check_types(header, _TYPES_OF_SOME)
    sizes = tensors.sizes
    shapes = {**_around(sizes), **tensors.optional, **tensors.required}
    layer = {**_layer(sizes), **tensors.layer_optional, **tensors.layer}
    suffixes: dict[int, set[str]] = {number: set() for number in range(sizes.layers)}
    for tensor in header.tensors:
        match = _LAYER.fullmatch(tensor.name)
        number, name = (int(match[1]), match[2]) if match else (-1, tensor.name)
        if match:
            suffixes.setdefault(number, set()).add(name)
        _check_tensor(header, tensor, (layer if match else shapes).get(_BOUND.sub(".weight", name)))
    if len(suffixes) > sizes.layers:
        raise ModelFormatError(f"has {len(suffixes)} layers, {_VISION}block_count is {sizes.layers}", header.path)
    present = {tensor.name for tensor in header.tensors}
    for name in ("v.patch_embd.weight", *tensors.required):
        if name not in present:
            raise ModelFormatError(f"lacks the tensor {name}", header.path)
    for number, name in product(suffixes, sorted(suffixes[0] | {*tensors.layer, *_NEEDED})):
        if name not in suffixes[number]:
            raise ModelFormatError(f"lacks the tensor v.blk.{number}.{name}", header.path)
        if extra := suffixes[number] - suffixes[0]:
            raise ModelFormatError(f"has v.blk.{number}.{min(extra)}, but not v.blk.0.{min(extra)}", header.path)


def _check_tensor(header: GGUFHeader, tensor: TensorInfo, shape: tuple[int, ...] | None) -> None:
    if shape is None:
        raise ModelFormatError(f"has a tensor {quoted(tensor.name)}, which such encoders do not have", header.path)
    if _BOUND.search(tensor.name):
        shape = (1,)
    if _trimmed(tensor.shape) != _trimmed(shape):
        raise ModelFormatError(
            f"tensor {tensor.name} has the shape {[*tensor.shape]}, its metadata ask for {[*shape]}", header.path
        )
    kernel = len(shape) > 2 and tensor.type != _F16  # ggml has convolutions of F32 and F16 only
    header.check_type(tensor, exact=kernel or tensor.name == TABLE)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the dimensions of 1 at its end, which ggml does not distinguish."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _around(sizes: EncoderSizes) -> Shapes:
    """Return what encoders have before and after the layers."""
    return {
        "v.patch_embd.weight": _kernel(sizes),
        **norm("v.pre_ln", sizes.hidden),
        **norm("v.post_ln", sizes.hidden),
    }


def _kernel(sizes: EncoderSizes) -> tuple[int, ...]:
    return sizes.patch, sizes.patch, 3, sizes.hidden


def _layer(sizes: EncoderSizes) -> Shapes:
    """Return what layers have; queries, keys and values are stated by the family."""
    hidden, inner = sizes.hidden, sizes.inner
    return {
        **norm("ln1", hidden),
        **norm("ln2", hidden),
        **{f"attn_{x}.bias": (hidden,) for x in "qkv"},
        **linear("attn_out", hidden, hidden),
        **linear("ffn_up", hidden, inner),
        **linear("ffn_gate", hidden, inner),
        **linear("ffn_down", inner, hidden),
    }
