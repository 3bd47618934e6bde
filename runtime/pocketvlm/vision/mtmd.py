"""libmtmd behind the seam: as an encoder of tiles, and whole, for projectors whose family nobody knows."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from pocketvlm.errors import EngineError, ModelFormatError, PairingError, RequestError
from pocketvlm.files.gguf_header import GGUFHeader
from pocketvlm.native.handle import Handle
from pocketvlm.native.mtmd import ImageChunk, Mtmd, TextChunk
from pocketvlm.pictures.images import Picture
from pocketvlm.system.machine import memory
from pocketvlm.vision.embedding_cache import EmbeddingCache
from pocketvlm.vision.encoder import Embeddings, EmbeddingSpan, PreparedImage
from pocketvlm.vision.family import RGB, Detail, EndsRows, Family, RowEnd

_WINDOWS = "clip.vision.n_wa_pattern"
_MASK_BYTES = 12  # a pair: in float32 twice, in float16 twice


class _Opened:
    """What stops and frees an mmproj file."""

    name = "libmtmd"
    together = 1

    def __init__(self, mtmd: Mtmd) -> None:
        self._mtmd = mtmd

    def cancel(self) -> None:
        self._mtmd.cancel()

    def allow(self) -> None:
        self._mtmd.allow()

    def close(self) -> None:
        self._mtmd.close()


class MtmdEncoder(_Opened):
    """A `VisionEncoder` over an mmproj file that was opened for single tiles of `family`; `header` is that file's."""

    def __init__(self, mtmd: Mtmd, header: GGUFHeader, family: Family) -> None:
        super().__init__(mtmd)
        patch = header.metadata.get("clip.vision.patch_size")
        self._masked = patch if isinstance(patch, int) and header.metadata.get(_WINDOWS) else None
        end = family.row_end if isinstance(family, EndsRows) else None
        self._end = None if end is None else (end.cell, _row_end(end, header, mtmd.width))

    def encode_tile(self, tile: RGB) -> Embeddings:
        """With the family's row ends.

        Raises EngineError where libmtmd could not, or not without taking more memory than there is.
        """
        if self._masked:
            _check_mask(tile.shape[1] // self._masked * (tile.shape[0] // self._masked))
        rows = self._mtmd.encode_tile(tile)
        if self._end is None:
            return rows
        cell, end = self._end
        if cell is None:
            return np.concatenate([rows, end[None]])
        columns = tile.shape[1] // cell
        rows[columns :: columns + 1] = end
        return rows


def _row_end(end: RowEnd, header: GGUFHeader, width: int) -> Embeddings:
    """float32 [width]. libmtmd ends the process where it uses one of another width."""
    found = next((values for name in end.tensors if (values := header.vector(name)) is not None), None)
    if found is None:
        raise ModelFormatError(f"has no {end.tensors[0]} in float32, which its pictures need", header.path)
    if len(found) != width:
        raise ModelFormatError(
            f"{end.tensors[0]} has {len(found)} values, the language model takes {width}", header.path
        )
    return found


def _check_mask(patches: int) -> None:
    """For windows, libmtmd fills a mask of all pairs of patches, counts its places in 32 bits, and copies it."""
    needed, known = patches**2 * _MASK_BYTES, memory()
    if patches**2 >= 2**31 or (known and needed > known[1]):
        raise EngineError(
            f"a picture of {patches:,} patches takes libmtmd {needed / 2**30:.1f} GiB for their windows; lower detail "
            "or max_image_tokens take less, an ONNX vision encoder much less"
        )


class NativeVision(_Opened):
    """libmtmd's own preprocessing and layout, as it is. It has no say in `detail`, and says so."""

    image_token: str | None = None
    at_once = 0  # libmtmd does not tell before it has a picture

    def __init__(self, mtmd: Mtmd, n_vocab: int, cache: EmbeddingCache | None = None) -> None:
        super().__init__(mtmd)
        self._n_vocab = n_vocab
        self.cache = cache or EmbeddingCache()

    def prepare(self, picture: Picture, detail: Detail, max_tokens: int | None, param: str) -> PreparedImage:
        if detail == "low" or max_tokens is not None:
            asked = "detail: low" if detail == "low" else "max_image_tokens"
            raise RequestError(
                f"{asked} needs a projector of a known family; libmtmd sizes this one's pictures itself", param
            )
        began = time.perf_counter()
        owner, chunks = self._mtmd.open_chunks(picture.pixels)
        pieces: list[int | EmbeddingSpan] = []
        images: list[ImageChunk] = []
        for chunk in chunks:
            if isinstance(chunk, TextChunk):
                self._check(chunk.tokens)
                pieces.extend(chunk.tokens)
            else:
                key = f"{picture.digest}:{len(images)}:{self.name}"
                causal = not self._mtmd.non_causal
                pieces.append(EmbeddingSpan(key, len(images), chunk.positions, chunk.advance, causal))
                images.append(chunk)
        seen = _NativeImage(
            tuple(pieces),
            picture.size,
            picture.size,
            shrunk=False,
            cache=self.cache,
            mtmd=self._mtmd,
            owner=owner,
            images=images,
        )
        seen.preprocess_ms = 1000 * (time.perf_counter() - began)
        return seen

    def _check(self, tokens: tuple[int, ...]) -> None:
        # libmtmd writes token -1 where the vocabulary lacks one of its own, and libllama then aborts the process.
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
        return f"whole:{span.key}"  # libmtmd alone knows what it makes of a picture

    def compute(self, span: EmbeddingSpan) -> Embeddings:
        began = time.perf_counter()
        rows = self.mtmd.encode(self.images[span.index])
        self.spent(began)
        return rows

    def close(self) -> None:
        self.owner.close()
