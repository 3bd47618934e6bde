"""Pictures at about their own size: the reference's numbers, and what we make of `detail` and max_image_tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm.errors import ImageError, ImageTooLargeError, RequestError
from pocketvlm.vision.dynamic_size import DynamicSize, smart_resize
from pocketvlm.vision.family import plan_picture

KNOWN = DynamicSize(28, 56 * 56, 16384 * 28 * 28, "<picture>", ("<start>", "<end>"))
SIZES = [(1, 1), (1, 200), (27, 29), (28, 28), (42, 70), (56, 56), (640, 480), (1023, 33), (4032, 3024), (9000, 6000)]


def tokens(size: tuple[int, int], detail: Any, most: int | None = None, family: DynamicSize = KNOWN) -> int:
    plan = family.plan(size, detail, most)
    (slot,) = plan.layout
    assert not isinstance(slot, str)
    assert slot.grid == (plan.used[1] // family.factor, plan.used[0] // family.factor)
    assert plan.used[0] % family.factor == plan.used[1] % family.factor == 0
    assert plan.tokens <= family.tile_tokens
    return plan.tokens


@pytest.mark.oracle
def test_smart_resize_is_the_reference() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference

    rng = np.random.default_rng(0)
    sizes = [*SIZES, *(tuple(map(int, pair)) for pair in np.exp(rng.uniform(0, 9, (3000, 2))).astype(int))]
    for factor, least, most in ((28, 3136, 1003520), (28, 3136, 12845056), (32, 65536, 16777216), (28, 200704, 250000)):
        for width, height in sizes:
            try:
                wanted = reference(height, width, factor, least, most)[::-1]
            except ValueError:
                with pytest.raises(ImageError, match="as long as wide"):
                    smart_resize((width, height), factor, least, most)
                continue
            assert smart_resize((width, height), factor, least, most) == wanted
            family = DynamicSize(factor, least, most, "", ())
            assert family.plan((width, height), "high").used == wanted
            tokens((width, height), "high", family=family)


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(90, 70), (640, 480), (50, 311)])
def test_pixels_are_the_reference(size: tuple[int, int]) -> None:
    from transformers import Qwen2VLImageProcessorPil

    picture = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    (tile,) = KNOWN.tiles(picture, KNOWN.plan(size, "high"))
    same = Qwen2VLImageProcessorPil(
        min_pixels=KNOWN.min_pixels, max_pixels=KNOWN.max_pixels, do_normalize=False, do_rescale=False
    )
    wanted = same(images=[Image.fromarray(picture)], return_tensors="np")
    patches = wanted["pixel_values"].reshape(-1, 3, 2, 14, 14)[:, :, 0]
    rows, cols = wanted["image_grid_thw"][0, 1:]
    blocks = patches.reshape(rows // 2, cols // 2, 2, 2, 3, 14, 14).transpose(0, 2, 5, 1, 3, 6, 4)
    assert np.array_equal(tile, blocks.reshape(rows * 14, cols * 14, 3))


@pytest.mark.parametrize("size", SIZES)
def test_auto_never_enlarges_beyond_the_grid(size: tuple[int, int]) -> None:
    used = KNOWN.plan(size, "auto").used
    assert tokens(size, "auto") <= 1024
    smallest = 56 * 56 / (size[0] * size[1])
    for have, given in zip(used, size, strict=True):
        assert have <= given * max(1, smallest**0.5) + 28


def test_details() -> None:
    assert tokens((4032, 3024), "high") == 144 * 108
    assert 950 < tokens((4032, 3024), "auto") <= 1024
    assert 200 < tokens((4032, 3024), "low") <= 256
    assert KNOWN.plan((640, 480), "auto") == KNOWN.plan((640, 480), "high")
    assert KNOWN.plan((300, 200), "low") == KNOWN.plan((300, 200), "high")
    assert KNOWN.plan((4032, 3024), "auto").shrunk and not KNOWN.plan((300, 200), "auto").tokens > 80


def test_what_the_model_wants_at_least_holds() -> None:
    eager = DynamicSize(28, 2000 * 784, 4000 * 784, "", ())
    assert 2000 <= tokens((100, 100), "auto", family=eager) <= 2100
    assert tokens((100, 100), "low", family=eager) <= 256


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [1, 2, 3, 16, 64, 100, 1000])
def test_max_image_tokens(size: tuple[int, int], most: int) -> None:
    for detail in ("low", "auto", "high"):
        found = tokens(size, detail, most)
        free = tokens(size, detail)
        assert 1 <= found <= most
        assert found == free or found > most / 4 or most > free


def test_shrinking_keeps_proportions() -> None:
    for size in ((4000, 1000), (1000, 4000), (3000, 3000)):
        used = KNOWN.plan(size, "high", 400).used
        assert used[0] / used[1] == pytest.approx(size[0] / size[1], rel=0.15)


@pytest.mark.parametrize(("factor", "least", "most"), [(0, 1, 2), (28, 0, 2), (28, 3, 2)])
def test_impossible_limits(factor: int, least: int, most: int) -> None:
    with pytest.raises(ValueError, match="pixels"):
        DynamicSize(factor, least, most, "", ())


def test_errors_of_a_plan_name_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="as long as wide") as caught:
        plan_picture(KNOWN, (9000, 10), "auto", None, "id")
    assert caught.value.param == "id"
    for limit_param in (None, "max_image_tokens"):
        with pytest.raises(RequestError, match="max_image_tokens is 0; this model needs") as over:
            plan_picture(KNOWN, (300, 200), "auto", 0, "id", limit_param)
        assert over.value.param == (limit_param or "id")

    def refuse(*_: object) -> None:
        raise ImageTooLargeError("is large")

    monkeypatch.setattr(DynamicSize, "plan", refuse)
    with pytest.raises(ImageTooLargeError, match="id: is large"):
        plan_picture(KNOWN, (300, 200), "auto", None, "id")
