"""`read`: pages of documents as text, what each kind of model is asked, and answers without end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from engine_seam import model_of
from integration.asking import settle
from integration.squares import COLOUR, SCHEMA, squares
from iota.scenes import draw, random_scene
from pocketvlm import VLM, PageText, open_document, read
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import ImageError, RequestError
from pocketvlm.reading.preset import Preset
from pocketvlm.reading.presets import GENERAL, preset_for, presets
from pocketvlm.reading.read_page import PageReader, ReadOptions


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.load(parallel=2, threads=1) as loaded:
        yield loaded


# ---- in Python


def test_pages_are_read_as_pictures_are(vlm: VLM, tmp_path: Path) -> None:
    scenes = [random_scene(Random(number)) for number in range(12)]
    pictures = [draw(scene, Random(number), (384, 384)) for number, scene in enumerate(scenes)]
    pictures[0].save(tmp_path / "scan.pdf", save_all=True, append_images=pictures[1:], resolution=72, quality=95)
    pages = list(read(tmp_path / "scan.pdf", vlm, parallel=2))
    assert [page.number for page in pages] == [*range(1, 13)]
    assert pages[2].label == "page 3 of 12" and pages[2].title == "Page 3"
    question = {"type": "text", "text": "What is in the picture?"}
    for page, picture in zip(pages, pictures, strict=True):
        messages = [{"role": "user", "content": [{"type": "image", "image": picture}, question]}]
        assert page.text == vlm.chat(messages).text, page.label
    assert len({page.text for page in pages}) > 6


def test_a_prompt_and_pages(vlm: VLM) -> None:
    pages = list(read(squares(), vlm, pages="3,1", prompt=COLOUR))
    assert [(page.number, page.text) for page in pages] == [(3, "Green"), (1, "Red")]


def test_the_model_gets_a_page_alone(vlm: VLM) -> None:
    """In a chat, a text before it says which page of how many it is."""

    before = vlm.statistics().prompt_tokens
    list(read(squares(3), vlm, prompt=COLOUR, pages="2"))
    content = [{"type": "file", "image": squares(1)}, {"type": "text", "text": COLOUR}]
    alone = vlm.count_tokens([{"role": "user", "content": content}])
    assert vlm.statistics().prompt_tokens - before == alone.total


def test_json(vlm: VLM) -> None:
    [page] = read(squares(1), vlm, prompt="How many shapes are there?", schema=SCHEMA)
    assert json.loads(page.text) == {"shapes": 1}


def test_a_picture_is_a_document_of_one_page(vlm: VLM, sample_png: Path) -> None:
    [page] = read(sample_png, vlm)
    assert page.title == "Page 1" and "circle" in page.text


def test_a_page_that_fails_does_not_lose_the_others(vlm: VLM, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(squares(bad=2))
    first, second, third = read(tmp_path / "a.pdf", vlm, prompt=COLOUR)
    assert (first.text, second.text, third.text) == ("Red", "", "Green")
    assert second.error is not None and "a.pdf: page 2" in second.error and "too large" in second.error
    assert first.error is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pages": "4"}, ImageError, "no page 4"),
        ({"format": "pdf"}, RequestError, "format: must be"),
        ({"format": "json"}, RequestError, "format: goes with a schema"),
        ({"preset": "no-such-model"}, RequestError, "preset: .* is unknown; known: .*general"),
        ({"parallel": 0}, RequestError, "parallel"),
        ({"schema": SCHEMA, "format": "text"}, RequestError, "format: needs"),
        ({"detail": "huge"}, RequestError, "detail"),
    ],
)
def test_options_are_checked_before_anything_is_read(
    vlm: VLM, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(squares(), vlm, **options)


def test_a_wrong_schema_is_no_fault_of_a_page(vlm: VLM) -> None:
    with pytest.raises(RequestError, match="type"):
        list(read(squares(), vlm, schema={"type": "nothing"}))


def test_stopping_early_leaves_nothing_running(vlm: VLM) -> None:
    before = vlm.statistics().finished + vlm.statistics().cancelled
    pages = read(squares(30), vlm, parallel=2)
    assert next(pages).number == 1
    pages.close()  # type: ignore[attr-defined]  # it is a generator
    settle(vlm)
    assert vlm.statistics().finished + vlm.statistics().cancelled < before + 10


# ---- presets


def test_presets_are_known_by_the_name_of_the_model(vlm: VLM) -> None:
    names = {
        "GLM-OCR-Q8_0": "glm-ocr",
        "glm-ocr": "glm-ocr",
        "PaddleOCR-VL-1.5-GGUF": "paddleocr-vl",
        "LightOnOCR-2-1B-Q8_0": "lightonocr",
        "DeepSeek-OCR-Q4_K_M": "deepseek-ocr",
        "HunyuanOCR.f16": "hunyuanocr",
        "granite-docling-258M-Q8_0": "granite-docling",
        "SmolDocling-256M-preview": "granite-docling",
        "MinerU2.5-2509-1.2B": "mineru",
        "olmOCR-2-7B-1025-Q4_K_M": "olmocr",
        "nanonets-ocr2-3b": "nanonets-ocr",
        "SmolVLM-256M-Instruct": "general",
        "granite-3.3-2b": "general",
        "iota": "iota",
    }
    assert {name: preset_for(replace(vlm.info, name=name)).name for name in names} == names
    marked = replace(vlm.info, name="model", control_tokens={"<otsl>": 1})  # a file that was renamed
    assert preset_for(marked).name == "granite-docling"
    assert set(presets()) == {*names.values()}


def test_a_front_matter_is_left_out() -> None:
    to_markdown = presets()["olmocr"].to_markdown
    about = "---\nprimary_language: en\nis_rotation_valid: True\nrotation_correction: 0\n---\n"
    assert to_markdown(f"{about}# Bill\n\n---\nTotal: 5\n") == "# Bill\n\n---\nTotal: 5"
    assert to_markdown(about) == to_markdown("---\nis_table: False\n---") == ""
    assert to_markdown("---\nDear Anna,\n---\n") == "---\nDear Anna,\n---", "a line of the page itself"


def test_what_a_model_is_asked() -> None:
    assert presets()["lightonocr"].question(None, None) == ""
    assert presets()["deepseek-ocr"].question(None, None) == "\n<|grounding|>Convert the document to markdown."
    assert presets()["deepseek-ocr"].question("Free OCR.", None) == "\nFree OCR."
    assert '"shapes"' in GENERAL.question(None, SCHEMA)
    assert "['shapes']" in presets()["hunyuanocr"].question(None, SCHEMA)
    assert GENERAL.question("Only the date.", SCHEMA) == "Only the date."


def with_preset(
    vlm: VLM, preset: Preset, options: ReadOptions | None = None, page: Path | bytes | None = None
) -> PageText:
    """Read a page, by default one with a red square."""
    reader = PageReader(vlm, options or ReadOptions())
    reader._preset = preset
    with open_document(page or squares(1)) as document:
        return reader.read(next(document.pages()), CancellationToken())


def token_of(vlm: VLM, text: str) -> int:
    model = model_of(vlm)
    return next(token for token in range(model.n_vocab) if model.token_text(token) == text)


def test_control_tokens_of_a_notation_are_kept(vlm: VLM) -> None:
    """iota writes none of its own accord, so a bias does."""
    text, token = next(
        (text, token) for text, token in vlm.info.control_tokens.items() if text not in vlm.info.end_tokens
    )
    biased = Preset("biased", COLOUR, max_tokens=3, fields={"logit_bias": {str(token): 100}})
    assert with_preset(vlm, biased).text == ""
    kept = replace(biased, fields={**biased.fields, "skip_special_tokens": False}, to_markdown=str)
    assert with_preset(vlm, kept).text == 3 * text
    stopped = replace(kept, fields={**kept.fields, "stop": (2 * text,)})
    assert with_preset(vlm, stopped).text == ""


def test_the_notation_becomes_markdown(vlm: VLM) -> None:
    marked = Preset("marked", COLOUR, to_markdown=lambda text: f"# {text.lower()}\x1b\r")
    assert with_preset(vlm, marked).text == "# red"
    assert with_preset(vlm, marked, ReadOptions("text")).text == "red"


def test_an_answer_without_end_is_cut_and_tried_again(vlm: VLM, sample_png: Path) -> None:
    """With a bias for one word iota writes nothing else, until the penalty outweighs it."""
    red = next(token for token in range(model_of(vlm).n_vocab) if model_of(vlm).piece(token) == b" red")

    def biased(bias: float) -> PageText:
        fields = {"logit_bias": {str(red): bias}}
        return with_preset(
            vlm, Preset("loop", "What is in the picture?", max_tokens=1500, fields=fields), page=sample_png
        )

    generated = vlm.statistics().generated_tokens
    page = biased(100)
    assert page.text == "red"
    assert page.notes == ("the model repeated itself without end, also with a penalty; its answer is cut there",)
    assert vlm.statistics().generated_tokens - generated < 700  # twice 600 characters, not twice 1500 tokens
    page = biased(16)
    assert page.notes == ("the model repeated itself without end; the page was read again with a penalty",)
    assert 5 < len(page.text) < 1000 and page.text.count("red") < 100


def test_json_without_end_is_an_error_of_the_page(vlm: VLM) -> None:
    endless = {"type": "array", "items": {"const": "red"}, "minItems": 900}
    [page] = read(squares(1), vlm, schema=endless, max_tokens=1000)
    assert page.text == "" and page.error == "the model's JSON is not complete, because it repeats itself"
    [page] = read(squares(1), vlm, schema=SCHEMA, max_tokens=2)
    assert page.error == "the model's JSON is not complete, because it is cut"
