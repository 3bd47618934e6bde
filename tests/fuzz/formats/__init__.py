"""One file per file format: `decode(data)` returns a document, `encode(document)` the bytes again.

`encode(decode(data)) == data` holds for every sound file. In a document None stands for a number that `encode`
computes, such as a length or a checksum. `encode` accepts what a mutation made of the document, whatever it is.
Formats of pictures also offer `originals()`: small sound files by name.
"""

from __future__ import annotations

import io
import pkgutil
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw


class Format(Protocol):
    def decode(self, data: bytes) -> Any: ...

    def encode(self, document: Any) -> bytes: ...


def format_named(name: str) -> Format:
    module: Any = import_module(f"{__name__}.{name}")
    return module  # type: ignore[no-any-return]


def picture_originals() -> dict[str, tuple[str, bytes]]:
    """Return (format, data) of sound pictures, by names such as `png rgb`."""
    files = {}
    for name in (module.name for module in pkgutil.iter_modules(__path__)):
        originals = getattr(format_named(name), "originals", dict)
        files |= {f"{name} {kind}": (name, data) for kind, data in originals().items()}
    return files


def drawing(mode: str = "RGB", size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Return a picture with shapes, a slope and some noise."""
    width, height = size
    slope = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    noise = np.random.default_rng(0).integers(0, 16, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(np.minimum(slope, 239) + noise, "RGB")
    ImageDraw.Draw(picture).ellipse((4, 4, width // 2, height - 4), "red", "blue")
    if mode == "P":
        return picture.quantize(16)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.linear_gradient("L").resize(size))
    if mode in ("I;16", "F"):
        values = np.asarray(picture.convert("L")).astype(np.uint16 if mode == "I;16" else np.float32)
        return Image.fromarray(values * 257 if mode == "I;16" else values / 255)
    return picture.convert(mode)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
