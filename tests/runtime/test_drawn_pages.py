"""Pages as viewers show them: turned, cropped, transparent, with annotations, forms and layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drawn_pages import drawn_pages, fields
from pdfs import pdf, rectangle
from pocketvlm.documents.open_document import open_document
from pocketvlm.pictures.images import Picture

FILE = Path(__file__).parents[1] / "golden" / "drawn_pages.json"
POPPLER: dict[str, dict[str, Any]] = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", drawn_pages())
def test_as_poppler_draws_it(name: str) -> None:
    """By the mean colours of fields; edges of small pictures are smoothed in another way there."""
    expected = np.array([list(bytes.fromhex(row)) for row in POPPLER[name]["rows"]]).reshape(6, 6, 3)
    picture = drawn(drawn_pages()[name])
    assert picture.size == tuple(POPPLER[name]["size"])
    assert np.abs(fields(picture.pixels) - expected).max() <= 16


def test_a_crop_box_beyond_the_page() -> None:
    """The page ends where its paper does (ISO 32000-1, 14.11.2.1)."""
    picture = drawn(pdf([rectangle("1 0 0", 0, 0, 100, 100)], extra="/CropBox [-50 20 120 500]"))
    assert picture.size == (120, 80)
    assert picture.pixels[40, [99, 101]].tolist() == [[255, 0, 0], [255, 255, 255]]


def drawn(data: bytes) -> Picture:
    """Read the page of a file, a pixel for each point."""
    with open_document(data) as document:
        return document.read(1, lambda points: (round(points[0]), round(points[1])))
