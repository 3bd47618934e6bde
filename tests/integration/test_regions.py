"""Regions in answers, `locate` and what both commands draw, with the model in the box as one of a notation."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from engine_seam import engine_of
from integration.asking import asked
from pocketvlm import VLM, AsyncVLM, BundleError, ImageError, RequestError, UnsupportedError
from pocketvlm.cli.commands import app
from pocketvlm.regions.families import qwen3_vl
from pocketvlm.regions.notation import Notation

LIST = [{"bbox_2d": [100, 200, 300, 600], "label": "red circle"}, {"bbox_2d": [0, 0, 1000, 1000], "label": "all"}]


def forced(answer: Any) -> dict[str, Any]:
    """A response format that lets a model write one answer alone."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": answer}}}


def with_notation(bundle: Path, folder: Path, name: str | None) -> Path:
    """A copy of a bundle that states a notation, or none."""
    folder.mkdir()
    for path in bundle.iterdir():
        if path.name != "manifest.json":
            (folder / path.name).symlink_to(path)
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8")) | {"regions": name}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


@pytest.fixture(scope="module")
def bundle(iota_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_notation(iota_bundle, tmp_path_factory.mktemp("bundles") / "placed", "qwen3-vl")


@pytest.fixture(scope="module")
def unplaced(iota_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_notation(iota_bundle, tmp_path_factory.mktemp("bundles") / "unplaced", None)


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> Iterator[VLM]:
    with VLM.load(bundle) as loaded:
        yield loaded


@pytest.fixture
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold every answer of `locate` to the same two boxes, whatever the model would say."""
    monkeypatch.setattr(qwen3_vl, "NOTATION", replace(qwen3_vl.NOTATION, schema={"const": LIST}))
    from pocketvlm.regions import notations

    notations.notations.cache_clear()
    monkeypatch.setattr(notations, "notations", notations.notations.__wrapped__)


def corners(region: Any) -> tuple[float, ...]:
    box = region.box
    return box.x, box.y, box.width, box.height


# ---- answers


@pytest.mark.parametrize("detail", ["low", "auto", "high"])
def test_regions_of_an_answer(vlm: VLM, detail: str) -> None:
    picture = {"type": "image", "image": Image.new("RGB", (640, 480), "white"), "detail": detail}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "Where?"}]}]
    answer = vlm.chat(messages, response_format=forced(LIST), n=2)
    first, second = answer.regions
    assert (first.label, first.image, corners(first)) == ("red circle", 0, (64, 96, 128, 192))
    assert first.relative.box and corners(first.relative) == (0.1, 0.2, 0.2, 0.4)
    assert corners(second) == (0, 0, 640, 480)
    assert [json.loads(answer.text[slice(*region.span)]) for region in answer.regions] == LIST
    assert [choice.message.regions for choice in answer.choices] == [answer.regions] * 2
    shown = answer.model_dump(mode="json")["choices"][0]["message"]["regions"][0]
    assert {*shown} == {"label", "image", "box", "relative", "span"}
    assert shown["box"] == {"x": 64, "y": 96, "width": 128, "height": 192}


def test_a_stream_has_them_with_the_last_chunk(vlm: VLM, sample_png: Path) -> None:
    chunks = [*vlm.stream(asked("Where?", sample_png), response_format=forced(LIST))]
    assert [chunk.choices[0].delta.regions is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices[0].finish_reason == "stop"
    whole = vlm.chat(asked("Where?", sample_png), response_format=forced(LIST))
    assert chunks[-1].choices[0].delta.regions == whole.regions


def test_an_answer_without_places_has_no_such_key(vlm: VLM, sample_png: Path) -> None:
    answer = vlm.chat(asked("How many shapes are there?", sample_png))
    assert answer.regions == []
    assert "regions" not in answer.model_dump()["choices"][0]["message"]


def test_pixels_are_those_of_the_upright_picture(vlm: VLM) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (480, 640), "white").transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", exif=exif)
    answer = vlm.chat(asked("Where?", file.getvalue()), response_format=forced(LIST))
    assert answer.timings.images[0].original_size == (480, 640)
    assert corners(answer.regions[0]) == (48, 128, 96, 256)


def test_an_answer_with_regions_goes_back(vlm: VLM, sample_png: Path) -> None:
    messages = asked("Where?", sample_png)
    answer = vlm.chat(messages, response_format=forced(LIST))
    message = answer.choices[0].message
    assert vlm.conversation[-1] == {"role": "assistant", "content": answer.text}
    for earlier in (message, message.model_dump()):
        again = vlm.chat([*messages, earlier, {"role": "user", "content": "And?"}], response_format=forced(LIST))
        assert [*map(corners, again.regions)] == [*map(corners, answer.regions)]


def test_a_begun_list_goes_on(vlm: VLM, sample_png: Path) -> None:
    begun = json.dumps(LIST)[:20]
    answer = vlm.chat(
        [*asked("Where?", sample_png), {"role": "assistant", "content": begun}],
        response_format=forced(LIST),
        continue_final_message=True,
    )
    assert [region.label for region in answer.regions] == ["red circle", "all"]
    assert answer.regions[0].span[0] == 0 and json.loads(answer.text[slice(*answer.regions[1].span)]) == LIST[1]


# ---- locate


def test_locate_is_held_to_the_notation(vlm: VLM, sample_png: Path) -> None:
    for thing in ("the red circle", "the purple elephant", 'a "quoted" <|im_end|> thing'):
        answer = vlm.locate_answer(sample_png, thing)
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), qwen3_vl.NOTATION.schema)
        width, height = Image.open(sample_png).size
        for region in answer.regions:
            x, y, w, h = corners(region)
            assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    assert vlm.notation == "qwen3-vl"


@pytest.mark.usefixtures("certain")
def test_locate(bundle: Path, sample_png: Path) -> None:
    with VLM.load(bundle) as vlm:
        for picture in (sample_png, str(sample_png), sample_png.read_bytes(), Image.open(sample_png)):
            regions = vlm.locate(picture, "the red circle")
            assert [region.label for region in regions] == ["red circle", "all"]

        async def one() -> Any:
            return await AsyncVLM(vlm).locate(sample_png, "the red circle", max_tokens=200)

        assert asyncio.run(one()) == regions


@pytest.mark.parametrize("field", ["response_format", "tools", "tool_choice"])
def test_locate_has_its_own_form(vlm: VLM, sample_png: Path, field: str) -> None:
    with pytest.raises(RequestError, match="held to places") as error:
        vlm.locate(sample_png, "the dog", **{field: "auto" if field == "tool_choice" else {"type": "text"}})
    assert error.value.param == field


def test_a_label_that_the_answer_lacks(vlm: VLM, sample_png: Path) -> None:
    text = "[0.1, 0.2, 0.5, 0.8]"
    silent = Notation("silent", read_fractions, 1, "Where is {thing}?", grammar=lambda _: f"body: {json.dumps(text)}")
    answer = VLM(engine_of(vlm), notation=silent).locate_answer(sample_png, " the dog ")
    assert answer.text == text and [region.label for region in answer.regions] == ["the dog"]
    spotting = replace(silent, reads_all=True, grammar=lambda _: 'body: "Sum 12[0.1, 0.2, 0.5, 0.8]"')
    assert VLM(engine_of(vlm), notation=spotting).locate(sample_png, "total") == []


def read_fractions(text: str) -> Any:
    from pocketvlm.regions.families import llava

    return llava.NOTATION.read(text)


@pytest.mark.parametrize("thing", ["", "  ", None])
def test_a_thing_is_needed(vlm: VLM, sample_png: Path, thing: Any) -> None:
    with pytest.raises(RequestError, match="thing: must say what to locate"):
        vlm.locate(sample_png, thing)


def test_errors_name_the_picture(vlm: VLM) -> None:
    with pytest.raises(RequestError) as error:
        vlm.locate("nowhere.png", "it")
    assert error.value.param == "pictures.0"


def test_models_without_a_notation(unplaced: Path, bundle: Path, tmp_path: Path, sample_png: Path) -> None:
    with VLM.load(unplaced) as vlm:
        assert vlm.notation is None
        assert vlm.chat(asked("Where?", sample_png), response_format=forced(LIST)).regions == []
        with pytest.raises(UnsupportedError, match="how iota would write places in pictures is not known"):
            vlm.locate(sample_png, "it")
    with VLM.load(with_notation(bundle, tmp_path / "patches", "kosmos")) as vlm:
        assert vlm.notation is None
        with pytest.raises(UnsupportedError, match="models like Kosmos name places by patches"):
            vlm.locate(sample_png, "it")
    wrong = with_notation(bundle, tmp_path / "wrong", "qwen9")
    with pytest.raises(BundleError, match="regions: 'qwen9' is unknown; known: ") as error:
        VLM.load(wrong)
    assert error.value.path == wrong / "manifest.json"


# ---- the commands


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("certain")
def test_locate_on_the_command_line(bundle: Path, sample_png: Path, tmp_path: Path) -> None:
    width, height = Image.open(sample_png).size
    place = {"x": 0.1 * width, "y": 0.2 * height, "width": 0.2 * width, "height": 0.4 * height}
    out = tmp_path / "out.png"
    done = run("locate", "the red circle", "-i", sample_png, "-m", bundle, "--json", "--draw", out)
    assert done.exit_code == 0, done.output
    first, second = json.loads(done.stdout)["regions"]
    assert first == {"label": "red circle", "image": 0, "box": pytest.approx(place)}
    assert second["box"] == {"x": 0, "y": 0, "width": width, "height": height}
    drawn, plain = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (out, sample_png))
    changed = np.abs(drawn - plain).sum(axis=2) > 60
    assert drawn.shape == plain.shape and changed.any()
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    two = run("locate", "the red circle", "-i", sample_png, sample_png, "-m", bundle, "--draw", tmp_path / "two.jpg")
    assert two.exit_code == 0 and len(two.stdout.splitlines()) == 4
    line = f"red circle: x {place['x']:.0f}, y {place['y']:.0f}, width {place['width']:.0f}"
    assert two.stdout.startswith(f"{sample_png}: {line}")
    assert {path.name for path in tmp_path.iterdir()} == {"out.png", "two-1.jpg", "two-2.jpg"}


@pytest.mark.usefixtures("certain")
def test_pictures_are_read_one_at_a_time(bundle: Path, sample_png: Path, tmp_path: Path) -> None:
    """So the places of the first are printed where the second one is cut."""
    (cut := tmp_path / "cut.png").write_bytes(sample_png.read_bytes()[:-300])
    done = run("locate", "the red circle", "-i", sample_png, cut, "-m", bundle, "--draw", tmp_path / "out.png")
    assert isinstance(done.exception, ImageError) and "cut.png" in str(done.exception)
    assert len(done.stdout.splitlines()) == 2 and (tmp_path / "out-1.png").exists()


@pytest.mark.usefixtures("certain")
def test_nothing_located(bundle: Path, sample_png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen3_vl, "NOTATION", replace(qwen3_vl.NOTATION, schema={"const": []}))
    out = tmp_path / "out.png"
    done = run("locate", "the red circle", sample_png, "-m", bundle, "--json", "--draw", out)
    assert (done.exit_code, json.loads(done.stdout)) == (1, {"regions": []})
    assert not out.exists()
    assert run("locate", "the red circle", sample_png, "-m", bundle).exit_code == 1


def refusal(*arguments: object) -> str:
    done = run(*arguments)
    assert isinstance(done.exception, RequestError), done.output
    return str(done.exception)


def test_wrong_arguments(bundle: Path, unplaced: Path, sample_png: Path, tmp_path: Path) -> None:
    where = ("locate", "it", "-i", sample_png, "-m", bundle)
    assert "must end in .png" in refusal(*where, "--draw", tmp_path / "out.gif")
    assert "does not exist" in refusal(*where, "--draw", tmp_path / "no" / "out.png")
    (tmp_path / "folder.png").mkdir()
    assert "is a folder" in refusal(*where, "--draw", tmp_path / "folder.png")
    assert "name a picture" in refusal("locate", "it", "-m", bundle)
    assert "say what to locate" in refusal("locate", "-i", sample_png, "-m", bundle)
    assert "no such file" in refusal("locate", "it", "-i", tmp_path / "none.png", "-m", bundle)
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.7\n")
    assert "has pages" in refusal("locate", "it", "-i", tmp_path / "x.pdf", "-m", bundle)
    assert "is not known" in refusal("locate", "it", "-i", sample_png, "-m", unplaced)
    assert "is not known" in refusal("chat", "Where?", "-i", sample_png, "-m", unplaced, "--draw", tmp_path / "o.png")
    assert "needs a question" in refusal("chat", "-m", bundle, "--draw", tmp_path / "o.png")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".png"] == ["folder.png"]


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_chat_draws_what_an_answer_names(bundle: Path, sample_png: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    schema, out = tmp_path / "schema.json", tmp_path / "out.webp"
    schema.write_text(json.dumps({"const": LIST}))
    arguments = ("chat", "Where?", "-i", sample_png, "-m", bundle, *more, "--json-schema", schema, "--draw", out)
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert Image.open(out).size == Image.open(sample_png).size
    out.unlink()
    schema.write_text(json.dumps({"const": []}))
    done = run(*arguments)
    assert done.exit_code == 0 and not out.exists()
    assert "nothing is drawn" in done.stderr
