"""What is drawn into pictures: outlines in place, labels that can be read and do not cover each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketvlm import Box, ImageTimings, Outline, Point, Region
from pocketvlm.cli.drawing import pictures_of
from pocketvlm.regions import draw
from pocketvlm.regions.draw import draw_regions

GROUNDS = {
    "dark": np.full((300, 400, 3), 10, np.uint8),
    "light": np.full((300, 400, 3), 250, np.uint8),
    "noise": np.random.default_rng(3).integers(0, 256, (300, 400, 3), dtype=np.uint8),
    "orange": np.full((300, 400, 3), (230, 159, 0), np.uint8),  # the colour of the first outline
}


def region(label: str, x: float, y: float, width: float, height: float) -> Region:
    box = Box(x=x, y=y, width=width, height=height)
    return Region(label=label, image=0, box=box, relative=Outline(), span=(0, 1))


def test_pictures_of_messages(sample_png: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": str(sample_png)}},
        {"type": "image", "path": str(sample_png)},
        {"type": "file", "path": "a.pdf"},
    ]
    seen = [
        ImageTimings.model_construct(part=f"messages.1.content.{part}") for part in ("0", "1", "2.pages.0", "2.pages.1")
    ]
    named = [region("dog", 1, 1, 5, 5).model_copy(update={"image": number}) for number in range(4)]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "x"}, {"role": "user", "content": content}]
    pictures = pictures_of(messages, seen, named, 10**8)
    assert [*pictures] == [0, 1] and np.array_equal(pictures[0], pictures[1])
    assert capsys.readouterr().err.count("not drawn") == 1


@pytest.mark.parametrize("ground", GROUNDS)
def test_an_outline_and_a_label_on_any_ground(ground: str) -> None:
    picture = GROUNDS[ground]
    before = picture.copy()
    drawn = draw_regions(picture, [region("dog", 100, 100, 80, 60)]).astype(int)
    assert (picture == before).all() and drawn.shape == picture.shape
    # The line is a dark and a coloured one next to each other: one of them differs from every ground.
    edge = drawn[98:104, 140].sum(axis=1)
    assert edge.max() - edge.min() > 300
    assert (drawn[112:148, 112:168] == picture[112:148, 112:168]).all()  # nothing within
    plate = drawn[80:98, 100:125]
    assert plate.sum(axis=2).max() - plate.sum(axis=2).min() > 300


@pytest.fixture
def plates(monkeypatch: pytest.MonkeyPatch) -> list[draw._Plate]:
    """The plates that are drawn."""
    kept: list[draw._Plate] = []
    place = draw._label

    def label(*arguments: object) -> draw._Plate:
        kept.append(place(*arguments))  # type: ignore[arg-type]
        return kept[-1]

    monkeypatch.setattr(draw, "_label", label)
    return kept


def test_labels_do_not_cover_each_other(plates: list[draw._Plate]) -> None:
    regions = [region(f"thing number {number}", 100, 100, 90, 60) for number in range(12)]
    regions += [
        region("at the edge", 330, 0, 70, 40),
        region("corner", 390, 290, 10, 10),
        region("all", 0, 0, 400, 300),
    ]
    draw_regions(GROUNDS["light"], regions)
    assert len(plates) == len(regions)
    for number, plate in enumerate(plates):
        assert 0 <= plate.left < plate.right <= 400 and 0 <= plate.top < plate.bottom <= 300
        assert not any(plate.overlaps(other) for other in plates[:number])


def test_long_labels_are_cut_and_strange_ones_drawn(plates: list[draw._Plate]) -> None:
    labels = ["word " * 60, "a\nb\x1b[31m\u202e", "кошка", "猫", "🐈", "", "\x00", "…"]
    draw_regions(GROUNDS["dark"], [region(label, 10, 30 * number, 20, 20) for number, label in enumerate(labels)])
    assert len(plates) == len(labels) - 2 and all(plate.right <= 400 for plate in plates)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (12, 12), (4000, 10)])
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    assert draw_regions(picture, [region("label", 0, 0, width, height)]).shape == picture.shape


def test_points_and_polygons_are_drawn() -> None:
    points = [Point(x=50, y=50), Point(x=400, y=300)]
    corners = [Point(x=200, y=100), Point(x=300, y=100), Point(x=250, y=200)]
    some = Region(label="", image=0, points=points, relative=Outline(), span=(0, 1))
    shape = Region(label="", image=0, polygon=corners, box=None, relative=Outline(), span=(0, 1))
    drawn = draw_regions(GROUNDS["light"], [some, shape])
    assert (drawn[50, 50] != 250).any() and (drawn[100, 250] != 250).any() and (drawn[150, 275] != 250).any()
