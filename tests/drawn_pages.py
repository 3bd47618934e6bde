"""PDF pages with what viewers draw in different ways, made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pdfs import pdf, rectangle

_FIELDS = 6  # of a page, across and down
_RED = rectangle("1 0 0", 0, 0, 100, 100)
# Four fields of different colours, and one corner that says which way is up.
_CARDS = b"".join(
    rectangle(colour, x, y, 90, 40)
    for colour, x, y in (("1 0 0", 5, 5), ("0 0.6 0", 105, 5), ("0 0 1", 5, 55), ("1 0.8 0", 105, 55))
) + rectangle("0 0 0", 10, 80, 20, 10)
_LOOK = b"<< /Type /XObject /Subtype /Form /BBox [0 0 50 50] /Length 25 >> stream\n0 0.6 0 rg 0 0 50 50 re f\nendstream"
_OFF_LOOK = (
    b"<< /Type /XObject /Subtype /Form /BBox [0 0 50 50] /Length 23 >> stream\n1 0 0 rg 0 0 50 50 re f\nendstream"
)


def _annotation(entries: str, rect: str = "[75 25 125 75]", look: bool = True) -> bytes:
    appearance = "/AP << /N 901 0 R >>" if look else ""
    return f"<< /Type /Annot /Rect {rect} {appearance} {entries} >>".encode()


def _annotated(*annotations: bytes, catalog: str = "") -> bytes:
    objects = {901: _LOOK, 902: _OFF_LOOK, **{910 + n: one for n, one in enumerate(annotations)}}
    places = " ".join(f"{910 + n} 0 R" for n in range(len(annotations)))
    return pdf([_CARDS], extra=f"/Annots [{places}]", objects=objects, catalog=catalog)


def _with_resources(content: bytes, resources: str, objects: dict[int, bytes] | None = None) -> bytes:
    data = pdf([content], objects=objects, extra=f"/Resources << {resources} >>")
    return data.replace(b"/Resources << /Font << /F1 3 0 R >> >>", b"", 1)


def _stream(entries: str, data: bytes) -> bytes:
    return f"<< {entries} /Length {len(data)} >> stream\n".encode() + data + b"\nendstream"


def _image(pixels: bytes, width: int, height: int, more: str) -> bytes:
    return _stream(f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /BitsPerComponent 8 {more}", pixels)


def drawn_pages() -> dict[str, bytes]:
    """Return files of one page by name."""
    show = b"q 160 0 0 80 20 10 cm /I Do Q"
    field = "/Subtype /Widget /FT /Tx /T (name) /V (x) /F 4"
    box = "/Subtype /Widget /FT /Btn /T (box) /F 4 /AP << /N << /Yes 901 0 R /Off 902 0 R >> >> /AS /{0} /V /{0}".format
    layers = "/OCProperties << /OCGs [903 0 R] /D << /OFF [903 0 R] >> >>"
    hidden = b"/OC /L BDC " + _RED + b"EMC " + rectangle("0 0 1", 100, 0, 100, 100)
    return {
        **{f"turned by {angle}": pdf([_CARDS], extra=f"/Rotate {angle}") for angle in (90, 180, 270, -90, 450)},
        "cropped": pdf([_CARDS], extra="/CropBox [20 20 120 90]"),
        "cropped and turned": pdf([_CARDS], extra="/CropBox [20 20 120 90] /Rotate 90"),
        "cropped to corners in any order": pdf([_CARDS], extra="/CropBox [120 90 20 20]"),
        "that does not begin at zero": pdf([_CARDS], box="[-20 -10 180 90]"),
        "half transparent": _with_resources(
            _CARDS + b"/Half gs " + rectangle("0 0 1", 50, 25, 100, 50), "/ExtGState << /Half << /ca 0.5 >> >>"
        ),
        "multiplied": _with_resources(
            _CARDS + b"/M gs " + rectangle("1 0 1", 50, 25, 100, 50), "/ExtGState << /M << /BM /Multiply >> >>"
        ),
        "with a soft mask": _with_resources(
            _CARDS + show,
            "/XObject << /I 904 0 R >>",
            {
                904: _image(bytes([0, 0, 255] * 4), 2, 2, "/ColorSpace /DeviceRGB /SMask 905 0 R /Interpolate false"),
                905: _image(bytes([0, 255, 128, 64]), 2, 2, "/ColorSpace /DeviceGray /Interpolate false"),
            },
        ),
        "with a stencil": _with_resources(
            b"0 0.6 0 rg " + show,
            "/XObject << /I 904 0 R >>",
            {
                904: _stream(
                    "/Type /XObject /Subtype /Image /Width 8 /Height 2 /BitsPerComponent 1 /ImageMask true", b"\x0f\xf0"
                )
            },
        ),
        "with a palette": _with_resources(
            show,
            "/XObject << /I 904 0 R >>",
            {904: _image(bytes([0, 1, 2, 1]), 4, 1, "/ColorSpace [/Indexed /DeviceRGB 2 <ff00000000ffffcc00>]")},
        ),
        "with ink": _with_resources(
            show,
            "/XObject << /I 904 0 R >>",
            {904: _image(bytes([0, 0, 0, 255, 0, 0, 0, 0]), 2, 1, "/ColorSpace /DeviceCMYK")},
        ),
        "with a stamp": _annotated(_annotation("/Subtype /Stamp /F 4")),
        "with a hidden stamp": _annotated(_annotation("/Subtype /Stamp /F 2")),
        "with a stamp that is not for screens": _annotated(_annotation("/Subtype /Stamp /F 32")),
        "with a turned stamp": pdf(
            [_CARDS],
            extra="/Annots [910 0 R] /Rotate 90",
            objects={901: _LOOK, 910: _annotation("/Subtype /Stamp /F 4", "[0 0 50 50]")},
        ),
        "with a link": _annotated(_annotation("/Subtype /Link /Border [0 0 0]", look=False)),
        "with a filled field": _annotated(_annotation(field), catalog="/AcroForm << /Fields [910 0 R] >>"),
        "with a field that has no look yet": _annotated(
            _annotation(f"{field} /DA (/F1 0 Tf 0 g) /MK << /BG [0 0.6 0] >>", look=False),
            catalog="/AcroForm << /Fields [910 0 R] /NeedAppearances true /DR << /Font << /F1 3 0 R >> >> >>",
        ),
        "with a square that has no look": _annotated(
            _annotation("/Subtype /Square /F 4 /C [1 0 1] /IC [0 1 1] /BS << /W 4 >>", look=False)
        ),
        "with a ticked box": _annotated(
            _annotation(box("Yes"), look=False), catalog="/AcroForm << /Fields [910 0 R] >>"
        ),
        "with a box that is not ticked": _annotated(
            _annotation(box("Off"), look=False), catalog="/AcroForm << /Fields [910 0 R] >>"
        ),
        "with a layer that is off": pdf(
            [hidden],
            catalog=layers,
            objects={903: b"<< /Type /OCG /Name (notes) >>"},
            extra="/Resources << /Properties << /L 903 0 R >> >>",
        ).replace(b"/Resources << /Font << /F1 3 0 R >> >>", b"", 1),
    }


def fields(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return the mean colours of the fields of a page, [6, 6, 3]."""
    height, width, _ = pixels.shape

    def edges(length: int) -> list[Any]:
        return [slice(length * n // _FIELDS, length * (n + 1) // _FIELDS) for n in range(_FIELDS)]

    return np.array([[pixels[y, x].mean((0, 1)) for x in edges(width)] for y in edges(height)])
