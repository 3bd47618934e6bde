"""Places that models write, carried back to the picture: numbers from other writers, pixels from tiles."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm import ImageTimings, Region, RequestError
from pocketvlm.messages import Detail
from pocketvlm.regions.answer_text import AnswerText
from pocketvlm.regions.find import find_regions
from pocketvlm.regions.notations import notation_named, notation_of, notations
from pocketvlm.vision.compatibility import family_of
from pocketvlm.vision.family import Family, PicturePlan
from pocketvlm.vision.seen import seen_pixels
from runtime.test_families import SOUND

Four = tuple[float, float, float, float]
# Of each kind of projector: its metadata, and how the plans that it makes show a picture.
PROJECTORS: dict[str, dict[str, Any]] = {
    "idefics3": SOUND["idefics3"],
    "gemma3": SOUND["gemma3"],
    "gemma4v": SOUND["gemma4v"],
    "internvl": {"image_size": 448, "patch_size": 14, "projector.scale_factor": 2},
    "qwen2vl_merger": SOUND["qwen2.5vl_merger"],
    "qwen2.5vl_merger": SOUND["qwen2.5vl_merger"],
    "qwen3vl_merger": {"patch_size": 16, "spatial_merge_size": 2, "is_deepstack_layers": [True]},
    "glm4v": {"patch_size": 14, "spatial_merge_size": 2},
    "lfm2": SOUND["lfm2"],
    "pad": SOUND["mlp"],
    "crop": SOUND["mlp"],
    "stretch": SOUND["mlp"],
    "canvas": SOUND["mlp"] | {"image_grid_pinpoints": [336, 672, 672, 336, 672, 672, 1008, 336, 336, 1008]},
}
PROJECTORS["shrunk canvas"] = PROJECTORS["canvas"]  # LLaVA-OneVision's, with bars around a picture of one tile
OWN_KEYS: dict[str, dict[str, Any]] = {
    "pad": {"image_fit": "pad"},
    "crop": {"image_fit": "crop"},
    "stretch": {"image_fit": "stretch"},
    "canvas": {},
    "shrunk canvas": {"anyres_max": 9},
}


def family(kind: str) -> Family:
    values = {f"clip.vision.{key}": value for key, value in PROJECTORS[kind].items()}
    values |= {f"pocketvlm.{key}": value for key, value in OWN_KEYS.get(kind, {}).items()}
    name = "mlp" if kind in OWN_KEYS else kind
    known = family_of({"clip.projector_type": name, **values}, Path("x.gguf"))
    assert known is not None
    return known


def reported(plan: PicturePlan) -> ImageTimings:
    """What an engine would report about a picture with this plan."""
    fields: dict[str, Any] = {"tiles": 1, "tokens": 1, "shrunk": False, "encoded": 0, "cache": "none"}
    times: dict[str, Any] = {"read_ms": 0.0, "preprocess_ms": 0.0, "encode_ms": 0.0}
    return ImageTimings(original_size=plan.original, used_size=plan.used, view=plan.view, **fields, **times)


def thousandths(box: Four, scale: int = 1000) -> list[int]:
    return [round(scale * share) for share in box]


def tokens(box: Four) -> str:
    x1, y1, x2, y2 = (min(1023, number) for number in thousandths(box, 1024))
    return f"<loc{y1:04}><loc{x1:04}><loc{y2:04}><loc{x2:04}> it"


def pairs(box: Four) -> str:
    x1, y1, x2, y2 = thousandths(box)
    return f"({x1},{y1}),({x2},{y2})"


def yx(box: Four) -> list[int]:
    x1, y1, x2, y2 = thousandths(box)
    return [y1, x1, y2, x2]


def in_pixels(box: Four, seen: tuple[int, int]) -> list[int]:
    return [round(share * seen[number % 2]) for number, share in enumerate(box)]


# By the notation: the kind of projector, the steps of its numbers along an edge (None: pixels), and what a model writes
# for a box in shares of what it sees.
WRITERS: dict[str, tuple[str, int | None, Callable[[Four, tuple[int, int]], str]]] = {
    "qwen3-vl": (
        "qwen3vl_merger",
        1000,
        lambda box, _: f'```json\n[\n\t{{"bbox_2d": {thousandths(box)}, "label": "it"}}\n]\n```',
    ),
    "qwen2.5-vl": (
        "qwen2.5vl_merger",
        None,
        lambda box, seen: f'```json\n[\n\t{{"bbox_2d": {in_pixels(box, seen)}, "label": "it"}}\n]\n```',
    ),
    "qwen2-vl": (
        "qwen2vl_merger",
        1000,
        lambda box, _: f"<|object_ref_start|>it<|object_ref_end|><|box_start|>{pairs(box)}<|box_end|>",
    ),
    "glm-v": (
        "glm4v",
        1000,
        lambda box, _: f"It is here: <|begin_of_box|>[{thousandths(box)}]<|end_of_box|>",
    ),
    "internvl": ("internvl", 1000, lambda box, _: f"<ref>it</ref><box>[{thousandths(box)}]</box>"),
    "gemma": ("gemma4v", 1000, lambda box, _: json.dumps([{"box_2d": yx(box), "label": "it"}])),
    "paligemma": ("gemma3", 1024, lambda box, _: tokens(box)),
    "lfm2-vl": (
        "lfm2",
        10000,
        lambda box, _: json.dumps([{"label": "it", "bbox": [round(share, 4) for share in box]}]),
    ),
    "llava": ("pad", 1000, lambda box, _: "It is at [" + ", ".join(f"{share:.3f}" for share in box) + "]."),
    "hunyuanocr": ("qwen2vl_merger", 1000, lambda box, _: f"it{pairs(box)}"),
    "deepseek-ocr": (
        "gemma3",
        999,
        lambda box, _: f"<|ref|>it<|/ref|><|det|>[{thousandths(box, 999)}]<|/det|>",
    ),
}


def test_each_notation_has_a_writer() -> None:
    assert {*WRITERS} == {name for name, notation in notations().items() if not notation.refusal}


@pytest.mark.parametrize("name", WRITERS)
def test_random_boxes_come_back(name: str) -> None:
    kind, steps, written = WRITERS[name]
    model, notation = family(kind), notation_named(name)
    rng = random.Random(f"boxes of {name}")
    details: list[Detail] = ["low", "auto", "high"]
    for _ in range(200):
        size = rng.randint(60, 2500), rng.randint(60, 2500)
        plan = model.plan(size, rng.choice(details), rng.choice([None, None, 300]))
        seen = plan.canvas or plan.used
        # The picture is the whole of what the model sees, or lies in the middle of a square.
        left, top, (width, height) = 0, 0, size
        if kind == "pad":
            width = height = max(size)
            left, top = (width - size[0]) // 2, (height - size[1]) // 2
        x1, x2 = sorted(rng.uniform(0, size[0]) for _ in range(2))
        y1, y2 = sorted(rng.uniform(0, size[1]) for _ in range(2))
        x2, y2 = min(max(x2, x1 + size[0] / 50), size[0]), min(max(y2, y1 + size[1] / 50), size[1])
        x1, y1 = min(x1, x2 - size[0] / 50), min(y1, y2 - size[1] / 50)
        shares = (x1 + left) / width, (y1 + top) / height, (x2 + left) / width, (y2 + top) / height
        [region] = find_regions(written(shares, seen), notation, [reported(plan)])
        assert region.box is not None and region.relative.box is not None
        box, relative = region.box, region.relative.box
        # Half a pixel of what the model saw, or half a step of its numbers where these are coarser.
        across = max(width / seen[0], width / (steps or seen[0])) / 2 + 1e-3
        down = max(height / seen[1], height / (steps or seen[1])) / 2 + 1e-3
        if name == "paligemma":  # whose last place is 1023 of 1024
            across, down = 2 * across, 2 * down
        assert abs(box.x - x1) <= across and abs(box.x + box.width - x2) <= across
        assert abs(box.y - y1) <= down and abs(box.y + box.height - y2) <= down
        assert box.x >= 0 and box.x + box.width <= size[0] and box.y >= 0 and box.y + box.height <= size[1]
        assert relative.x * size[0] == pytest.approx(box.x, abs=2e-3)
        assert relative.width * size[0] == pytest.approx(box.width, abs=2e-3)
        assert relative.y * size[1] == pytest.approx(box.y, abs=2e-3)
        assert relative.height * size[1] == pytest.approx(box.height, abs=2e-3)
        assert (region.label, region.image) == ("" if name in ("glm-v", "llava") else "it", 0)
        assert region.cut_off is None


@pytest.mark.parametrize("detail", ["low", "auto", "high"])
@pytest.mark.parametrize("size", [(1600, 900), (500, 1400), (300, 200), (640, 640)])
@pytest.mark.parametrize("kind", PROJECTORS)
def test_what_the_model_sees_is_where_it_is(kind: str, size: tuple[int, int], detail: Detail) -> None:
    """The box that a red patch has in the pixels that the encoder gets is carried back to the patch."""
    width, height = size
    box = (width * 2 // 5, height * 3 // 10, width * 7 // 10, height * 3 // 5)
    picture = np.full((height, width, 3), (0, 0, 255), np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = (255, 0, 0)
    model = family(kind)
    plan = model.plan(size, detail, None)
    if kind == "crop":
        short = min(size)
        sides = [((length - short) // 2, (length + short) // 2) for length in size]
        box = tuple(min(max(value, sides[n % 2][0]), sides[n % 2][1]) for n, value in enumerate(box))
    seen = seen_pixels(model, plan, picture)
    assert seen.shape[:2] == (plan.canvas or plan.used)[::-1]
    red = (seen[..., 0].astype(int) > seen[..., 2]) & (seen[..., 1] < 50)  # bars are green, too
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    numbers = (
        (columns[0] / seen.shape[1], rows[0] / seen.shape[0]),
        (
            (columns[-1] + 1) / seen.shape[1],
            (rows[-1] + 1) / seen.shape[0],
        ),
    )
    answer = json.dumps({"bbox": [float(number) for corner in numbers for number in corner]})
    [region] = find_regions(answer, notation_named("lfm2-vl"), [reported(plan)])
    assert region.box is not None
    _, _, shown_width, shown_height = plan.view or (0, 0, *size)
    across, down = shown_width / seen.shape[1], shown_height / seen.shape[0]  # of a pixel that the model sees
    assert region.box.x == pytest.approx(box[0], abs=across) and region.box.y == pytest.approx(box[1], abs=down)
    assert region.box.x + region.box.width == pytest.approx(box[2], abs=across)
    assert region.box.y + region.box.height == pytest.approx(box[3], abs=down)


def one(notation: str, text: str, size: tuple[int, int] = (1000, 500), kind: str = "stretch") -> list[Region]:
    return find_regions(text, notation_named(notation), [reported(family(kind).plan(size, "auto", None))])


def numbers_of(region: Region) -> Four:
    assert region.box is not None
    return region.box.x, region.box.y, region.box.width, region.box.height


# ---- the edges of pictures


def test_a_place_that_was_cut_off_is_said() -> None:
    [middle, left, all_of_it] = one(
        "llava", "[0.2, 0.2, 0.8, 0.8] [0.000, 0.2, 0.5, 0.8] [0.0, 0.0, 1.0, 1.0]", (900, 300), "crop"
    )
    assert numbers_of(middle) == pytest.approx((360, 60, 180, 180), abs=1) and middle.cut_off is None
    assert numbers_of(left) == pytest.approx((300, 60, 150, 180), abs=1) and left.cut_off
    assert numbers_of(all_of_it) == pytest.approx((300, 0, 300, 300), abs=1) and all_of_it.cut_off


def test_bars_are_not_part_of_a_picture() -> None:
    text = "[0.1, 0.0, 0.3, 0.2] [0.1, 0.2, 0.3, 0.5] [0.0, 0.0, 1.0, 1.0]"  # the picture begins at 1/3 of the square
    across, whole = one("llava", text, (900, 300), "pad")
    assert numbers_of(across) == pytest.approx((90, 0, 180, 150), abs=1e-3)
    assert numbers_of(whole) == (0, 0, 900, 300) and whole.cut_off is None


@pytest.mark.parametrize("box", ["[-50, -20, 500, 400]", "[600, 500, 4000, 9000]", "[900, 100, 100, 900]"])
def test_boxes_stay_within_the_picture(box: str) -> None:
    [region] = one("qwen3-vl", f'{{"bbox_2d": {box}}}')
    x, y, width, height = numbers_of(region)
    assert 0 <= x < x + width <= 1000 and 0 <= y < y + height <= 500


@given(
    st.tuples(*[st.integers(-10, 1100)] * 4),
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.sampled_from(["pad", "crop", "stretch", "canvas"]),
)
@settings(max_examples=100, deadline=None)
def test_no_box_leaves_a_picture(numbers: tuple[int, ...], size: tuple[int, int], kind: str) -> None:
    for region in one("qwen3-vl", f'{{"bbox_2d": {list(numbers)}}}', size, kind):
        for box, (width, height) in ((region.box, size), (region.relative.box, (1, 1))):
            assert box is not None and box.width > 0 and box.height > 0
            assert box.x >= 0 and box.y >= 0 and box.x + box.width <= width and box.y + box.height <= height


def test_empty_boxes_are_no_regions() -> None:
    assert one("qwen3-vl", '[{"bbox_2d": [0, 0, 0, 0]}, {"bbox_2d": [5, 5, 5, 90]}, {"bbox_2d": []}]') == []


def test_points_and_polygons() -> None:
    text = '[{"point_2d": [100, 200], "label": "a"}, {"polygon_2d": [[0, 0], [500, 0], [500, 1000]], "label": "b"}]'
    point, polygon = one("qwen3-vl", text)
    assert point.points and point.box is None and point.relative.points
    assert (point.points[0].x, point.points[0].y) == (100, 100)
    assert (point.relative.points[0].x, point.relative.points[0].y) == (0.1, 0.2)
    assert polygon.polygon and [(one.x, one.y) for one in polygon.polygon] == [(0, 0), (500, 0), (500, 500)]
    assert numbers_of(polygon) == (0, 0, 500, 500)
    [quad] = one("internvl", "<ref>q</ref><quad>[[0, 0, 100, 0, 100, 100, 0, 100]]</quad>")
    assert quad.polygon and quad.label == "q" and numbers_of(quad) == (0, 0, 100, 50)


def test_the_message_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "regions.md").read_text("utf-8")
    message = json.loads(page.split("```json\n")[1].split("```")[0])
    [region] = one("qwen3-vl", message["content"], (640, 480))
    assert [region.model_dump(mode="json", exclude_none=True)] == message["regions"]


# ---- which picture


def test_the_picture_that_the_model_names() -> None:
    images = [reported(family("stretch").plan(size, "auto", None)) for size in ((100, 100), (200, 200), (300, 300))]

    def pictures(text: str) -> list[int]:
        return [region.image for region in find_regions(text, notation_named("qwen3-vl"), images)]

    box = '"bbox_2d": [0, 0, 500, 500]'
    assert pictures(f"[{{{box}}}]") == [2]  # the last one, if nothing is said
    assert pictures(f'[{{"image": 1, {box}}}, {{{box}, "image": "2"}}, {{"picture": 9, {box}}}]') == [0, 1, 2]
    assert pictures(f'[{{"image": 0, {box}}}, {{{box}, "image_index": 0}}]') == [2, 2]  # numbers are from 1
    assert pictures(f"In image 1: {{{box}}}. In Picture-2 it is {{{box}}} and {{{box}}}.") == [0, 1, 1]
    assert pictures(f'{{{box}, "label": "cat in image 2"}}') == [1]
    alone = find_regions(f"In image 2: {{{box}}}", notation_named("qwen3-vl"), images[:1])
    assert [region.image for region in alone] == [0]
    assert find_regions(f"{{{box}}}", notation_named("qwen3-vl"), []) == []


# ---- what models really write

BOX = '{"bbox_2d": [10, 20, 30, 40], "label": "red circle"}'


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (BOX, 1),
        (f"```json\n[\n\t{BOX},\n\t{BOX},\n]\n```\nThese are two.", 2),
        (f"Here: [{BOX}, {BOX[:30]}", 2),  # cut behind the numbers
        (f'[{BOX}, {{"bbox_2d": [10, 20, 30, 4', 1),  # cut within them
        (BOX.replace('"', "'"), 1),
        (BOX.replace("]", ",]"), 1),
        (BOX.replace("]", ""), 1),  # a bracket is missing
        (f"{BOX[:-1]} {BOX}", 2),  # a brace is missing
        (f'A 5" pipe {BOX}', 1),
        ('{"bbox_2d": [[1, 2, 30, 40], [5, 6, 70, 80]], "label": "two"}', 2),
        ('{"objects": {"cats": [' + BOX + "]}}", 1),
        ('{"bbox_2d": [1.5, 2.25, 30, 40.0], "label": "x"}', 1),
        ('{"bbox_2d": [1, 2, 3], "label": "x"} {"bbox_2d": [1, 2, 3, 4, 5]} {"bbox_2d": "none"}', 0),
        ('{"bbox_2d": [1e99, 2, 30, 40]}', 0),
        ("[[10, 20, 30, 40]]", 0),
    ],
)
def test_json_as_it_comes(text: str, count: int) -> None:
    regions = one("qwen3-vl", text)
    assert len(regions) == count
    for region in regions:
        named = text[slice(*region.span)]
        assert "bbox_2d" in named and len(named) <= len(text)
    if BOX in text:
        assert regions[0].label == "red circle" and numbers_of(regions[0]) == (10, 10, 20, 10)


@pytest.mark.parametrize(
    ("notation", "text", "labels"),
    [
        (
            "internvl",
            "<ref>a dog</ref><box>[[1, 2, 30, 40], [5, 6, 70, 80]]</box> and a [1, 2, 30, 40] list",
            ["a dog"] * 2,
        ),
        ("internvl", "a dog[[1, 2, 30, 40]]", [""]),
        ("internvl", "<ref>a</ref><box>[[1, 2, 30, 40]]</box><ref>b</ref><box>[[1, 2, 30, 40", ["a"]),
        ("glm-v", "The coordinates are [[97,595,179,988]].", [""]),
        ("glm-v", "<|begin_of_box|>(1, 2, 30, 40)<|end_of_box|>, not <|begin_of_box|>42<|end_of_box|>", [""]),
        ("glm-v", '<|begin_of_box|>[{"label": "car", "bbox_2d": [1, 2, 30, 40]}]<|end_of_box|>', ["car"]),
        ("qwen2-vl", "See (10,20),(30,40), not (1,2) or f(1,2),(3,4),(5,6).", [""]),
        (
            "qwen2-vl",
            "<|object_ref_start|>dogs<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|><|box_start|>(5,6),(70,80)"
            "<|box_end|> and more <|box_start|>(5,6),(70,80)<|box_end|>",
            ["dogs", "dogs", ""],
        ),
        (
            "hunyuanocr",
            "Total (net)(10,20),(30,40)12.50(1,2),(30,40)\nSum(5,6),(70,80)",
            ["Total (net)", "12.50", "Sum"],
        ),
        ("paligemma", tokens((0.1, 0.1, 0.2, 0.2)) + " ; " + tokens((0.3, 0.3, 0.5, 0.5)), ["it", "it"]),
        ("paligemma", "<loc0001><loc0002><loc0100><loc0200><seg001><seg127> big dog ; <loc0001>", ["big dog"]),
        ("deepseek-ocr", "<|ref|>title<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|>\n# Title [[1, 2, 30, 40]]", ["title"]),
        ("llava", "At [0.10, 0.20, 0.50, 1.0], not at [1, 2, 3, 4].", [""]),
        ("gemma", '```json\n[{"box_2d": [1, 2, 30, 40], "label": "cat"}]\n```', ["cat"]),
    ],
)
def test_marks_as_they_come(notation: str, text: str, labels: list[str]) -> None:
    assert [region.label for region in one(notation, text)] == labels


@given(st.text(st.sampled_from("[]{}()<>\"'\\,:;.0123456789 \nbox_2dlabe|/refdtstarnloc"), max_size=400))
@settings(max_examples=100, deadline=None)
def test_any_text_is_read(text: str) -> None:
    for notation in notations().values():
        for place in notation.read(text):
            assert 0 <= place.span[0] < place.span[1] <= len(text) and len(place.numbers) % 2 == 0
        find_regions(text, notation, [reported(family("pad").plan((300, 200), "auto", None))])


# ---- control tokens as placeholders


def test_private_characters_stay_in_the_content() -> None:
    """Icon fonts have them from U+F0000 on."""
    text = AnswerText(notation_named("internvl"), {"<ref>": 7, "</ref>": 8, "<box>": 9, "</box>": 10})
    icons = "\U000f0000\U000f0001\ue000"
    marks = {token: mark for mark, token in text.placeholders.items()}
    written = f"{icons} {marks[7]}dog{marks[8]}{marks[9]}[[0, 0, 500, 500]]{marks[10]}"
    assert text.push(written) == f"{icons} dog[[0, 0, 500, 500]]"
    [region] = text.regions([reported(family("internvl").plan((448, 448), "low", None))])
    assert region.label == "dog" and written[4] == marks[7] and region.span == (4, 24)


def test_content_that_has_the_characters_of_placeholders() -> None:
    first = next(iter(AnswerText(notation_named("internvl"), {"<ref>": 7}).placeholders))
    assert first not in AnswerText(notation_named("internvl"), {"<ref>": 7}, begun=f"a{first}").placeholders


# ---- which notation


@pytest.mark.parametrize(
    ("model", "controls", "vision", "name"),
    [
        ("Qwen3-VL-4B", (), "qwen3_vl", "qwen3-vl"),
        ("Qwen3.5-4B", (), "qwen3_5", "qwen3-vl"),
        ("mine", (), "qwen2_5_vl", "qwen2.5-vl"),
        ("mine", (), "internvl", "internvl"),
        ("mine", (), "llava", "llava"),
        ("mine", (), "gemma4", "gemma"),
        ("mine", (), "smolvlm", None),
        ("mine", (), "llava_next", None),
        ("mine", (), None, None),
        ("mine", ("<loc0000>",), None, "paligemma"),
        ("paligemma2-3b", (), None, "paligemma"),
        ("mine", ("<|det|>",), None, "deepseek-ocr"),
        ("HunyuanOCR-1B", (), None, "hunyuanocr"),
        ("kosmos-2", (), None, "kosmos"),
        ("mine", ("<patch_index_0000>",), "qwen3_vl", "kosmos"),
        ("mine", ("<patch_index_0000>", "<loc0000>"), None, None),
    ],
)
def test_models_and_their_notations(
    model: str, controls: tuple[str, ...], vision: str | None, name: str | None
) -> None:
    notation = notation_of(model, controls, vision)
    assert (notation.name if notation else None) == name


def test_an_unknown_name() -> None:
    with pytest.raises(RequestError, match="regions: 'qwen9' is unknown; known: deepseek-ocr, gemma"):
        notation_named("qwen9")
