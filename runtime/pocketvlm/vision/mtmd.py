"""Encode with libmtmd: tiles of a known family, or whole pictures for projectors of an unknown one."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from pocketvlm.errors import EngineError, ImageError, ModelFormatError, PairingError, RequestError
from pocketvlm.files.gguf_header import GGUFHeader
from pocketvlm.messages import Detail
from pocketvlm.native.handle import Handle
from pocketvlm.native.mtmd import ImageChunk, Mtmd, TextChunk
from pocketvlm.pictures.clip import Clip
from pocketvlm.pictures.images import Picture
from pocketvlm.system.machine import memory
from pocketvlm.vision.embedding_cache import EmbeddingCache
from pocketvlm.vision.encoder import Embeddings, EmbeddingSpan, PreparedImage
from pocketvlm.vision.family import RGB, Family, HasRowEnd, RowEnd
from pocketvlm.vision.grid import check_ratio

_WINDOW_PATTERN = "clip.vision.n_wa_pattern"
_MASK_BYTES = 12  # for each pair of patches: twice float32 and twice float16


class _MtmdOwner:
    """What MtmdEncoder and NativeVision share: they cancel and free an mmproj file."""

    name = "libmtmd"
    concurrent_tiles = 1
    frames = 1  # libmtmd doubles a picture itself where its encoder takes two frames

    def __init__(self, mtmd: Mtmd) -> None:
        self._mtmd = mtmd

    def cancel(self) -> None:
        self._mtmd.cancel()

    def allow(self) -> None:
        self._mtmd.allow()

    def close(self) -> None:
        self._mtmd.close()


class MtmdEncoder(_MtmdOwner):
    """A `VisionEncoder` over an mmproj file that was opened for single tiles of `family`; `header` is that file's.

    Raises ModelFormatError where the file lacks the family's row end.
    """

    def __init__(self, mtmd: Mtmd, header: GGUFHeader, family: Family) -> None:
        super().__init__(mtmd)
        patch = header.metadata.get("clip.vision.patch_size")
        self._window_patch = patch if isinstance(patch, int) and header.metadata.get(_WINDOW_PATTERN) else None
        row_end = family.row_end if isinstance(family, HasRowEnd) else None
        self._row_end = None if row_end is None else (row_end.cell, _read_row_end(row_end, header, mtmd.width))

    def encode_tile(self, tile: RGB) -> Embeddings:
        """Return the embeddings of a tile, with the family's row ends.

        Raises Aborted, and EngineError where libmtmd fails or would need more memory than is available.
        """
        if self._window_patch:
            _check_mask(tile.shape[1] // self._window_patch * (tile.shape[0] // self._window_patch))
        rows = self._mtmd.encode_tile(tile)
        if self._row_end is None:
            return rows
        cell, embedding = self._row_end
        if cell is None:
            return np.concatenate([rows, embedding[None]])
        columns = tile.shape[1] // cell
        rows[columns :: columns + 1] = embedding
        return rows


def _read_row_end(row_end: RowEnd, header: GGUFHeader, width: int) -> Embeddings:
    """Return the embedding, float32 [width]. libmtmd would end the process if it used one of another width."""
    embedding = next((values for name in row_end.tensors if (values := header.vector(name)) is not None), None)
    if embedding is None:
        raise ModelFormatError(f"has no {row_end.tensors[0]} in float32, which its pictures need", header.path)
    if len(embedding) != width:
        raise ModelFormatError(
            f"{row_end.tensors[0]} has {len(embedding)} values, the language model takes {width}", header.path
        )
    return embedding


def _check_mask(patches: int) -> None:
    """Raise EngineError where libmtmd could not hold the mask for windowed attention.

    The mask has all pairs of patches. libmtmd counts them in 32 bits, and copies the mask.
    """
    needed, total_available = patches**2 * _MASK_BYTES, memory()
    if patches**2 >= 2**31 or (total_available and needed > total_available[1]):
        raise EngineError(
            f"libmtmd needs {needed / 2**30:.1f} GiB for the attention windows of a picture of {patches:,} patches; "
            "use a lower detail, max_image_tokens or an ONNX vision encoder"
        )


class NativeVision(_MtmdOwner):
    """libmtmd's own preprocessing and layout, which has no `detail`: other values than the default are refused."""

    image_token: str | None = None
    shows_videos = False
    min_batch = 0  # unknown before libmtmd has a picture

    def __init__(self, mtmd: Mtmd, n_vocab: int, cache: EmbeddingCache | None = None) -> None:
        super().__init__(mtmd)
        self._n_vocab = n_vocab
        self.cache = cache or EmbeddingCache()

    def prepare(
        self,
        picture: Picture,
        detail: Detail,
        max_tokens: int | None,
        param: str,
        *,
        alone: bool = True,  # noqa: ARG002  # libmtmd plans each picture by itself
    ) -> PreparedImage:
        """Prepare a picture with libmtmd.

        Raises RequestError for a size limit, ImageError for a picture that is too long for its width, PairingError and
        EngineError.
        """
        if detail == "low" or max_tokens is not None:
            option = "detail: low" if detail == "low" else "max_image_tokens"
            raise RequestError(
                f"{option} needs a projector of a known family; this projector's pictures are sized by libmtmd", param
            )
        try:
            check_ratio(picture.size)  # libmtmd's own sizes may round to nothing
        except ImageError as error:
            raise ImageError(error.message, param) from None
        began = time.perf_counter()
        owner, chunks = self._mtmd.open_chunks(picture.pixels)
        pieces: list[int | EmbeddingSpan] = []
        images: list[ImageChunk] = []
        for chunk in chunks:
            if isinstance(chunk, TextChunk):
                self._check_tokens(chunk.tokens)
                pieces.extend(chunk.tokens)
            else:
                key = f"{picture.digest}:{len(images)}:{self.name}"
                causal = not self._mtmd.non_causal
                pieces.append(EmbeddingSpan(key, len(images), chunk.positions, chunk.advance, causal))
                images.append(chunk)
        prepared = _NativeImage(
            tuple(pieces),
            picture.size,
            picture.size,
            shrunk=False,
            cache=self.cache,
            mtmd=self._mtmd,
            owner=owner,
            images=images,
        )
        prepared.preprocess_ms = 1000 * (time.perf_counter() - began)
        return prepared

    def prepare_clip(
        self,
        clip: Clip,  # noqa: ARG002
        detail: Detail,  # noqa: ARG002
        max_tokens: int | None,  # noqa: ARG002
        param: str,
    ) -> PreparedImage:
        """Raise RequestError: no family says how a video would be shown."""
        raise RequestError("this projector's family is not known, so videos are shown as pictures only", param)

    def _check_tokens(self, tokens: tuple[int, ...]) -> None:
        # libmtmd writes token -1 if the vocabulary lacks a token that it needs. libllama then aborts the process.
        if any(not 0 <= token < self._n_vocab for token in tokens):
            raise PairingError(
                "this projector needs control tokens that the language model's vocabulary lacks", self._mtmd.path
            )


@dataclass(kw_only=True)
class _NativeImage(PreparedImage):
    mtmd: Mtmd
    owner: Handle
    images: list[ImageChunk]

    def content(self, span: EmbeddingSpan) -> str:
        return f"whole:{span.key}"  # only libmtmd knows what its encoder gets

    def compute(self, span: EmbeddingSpan) -> Embeddings:
        began = time.perf_counter()
        rows = self.mtmd.encode(self.images[span.index])
        self.add_encode_time(began)
        return rows

    def close(self) -> None:
        self.owner.close()
