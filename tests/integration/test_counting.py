"""Tokens are counted as they are evaluated later, and nothing is encoded or evaluated to count them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pocketvlm import VLM, ImageError, RequestError, TokenCount

TOOL = {"type": "function", "function": {"name": "zoom", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module", params=[False, True], ids=["in_process", "supervised"])
def vlm(request: pytest.FixtureRequest, iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle, supervised=request.param, context_size=1024) as loaded:
        yield loaded


def picture(size: tuple[int, int], **options: Any) -> dict[str, Any]:
    return {"type": "image", "image": Image.new("RGB", size, "red"), **options}


def conversation(*sizes: tuple[int, int], **options: Any) -> list[dict[str, Any]]:
    parts = [picture(size, **options) for size in sizes]
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [*parts, "What is this?"]}]


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        (conversation(), {}),
        (conversation((640, 480)), {}),
        (conversation((640, 480), (30, 300), (64, 64)), {}),
        (conversation((640, 480), detail="low"), {}),
        (conversation((640, 480), max_image_tokens=40), {}),
        (conversation((64, 64)), {"tools": [TOOL]}),
        ([*conversation((64, 64)), {"role": "assistant", "content": "It is"}], {}),
    ],
)
def test_the_count_is_that_of_the_answer(vlm: VLM, messages: list[Any], fields: dict[str, Any]) -> None:
    count = vlm.count_tokens(messages, **fields)
    answer = vlm.chat(messages, **fields, max_tokens=1)
    assert count.total == answer.usage.prompt_tokens
    assert [*count.images] == [image.tokens for image in answer.timings.images]
    assert sum(count.images) == answer.usage.prompt_tokens_details.image_tokens


def test_nothing_is_encoded_or_evaluated(vlm: VLM) -> None:
    before = vlm.statistics()
    messages = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (64, 64), "blue")}]}]
    vlm.count_tokens(messages)
    assert vlm.statistics() == before
    assert [image.cache for image in vlm.chat(messages, max_tokens=1).timings.images] == ["none"]


def test_a_prompt_may_be_longer_than_the_context(vlm: VLM) -> None:
    count = vlm.count_tokens([{"role": "user", "content": "Hello. " * 2000}])
    assert count.total > vlm.info.context_size
    assert count == TokenCount(count.total, ())


def test_what_is_wrong_has_its_path(vlm: VLM) -> None:
    with pytest.raises(ImageError) as wrong_picture:
        vlm.count_tokens(
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]
        )
    assert wrong_picture.value.param == "messages.0.content.0.image_url.url"
    with pytest.raises(RequestError) as wrong_field:
        vlm.count_tokens([{"role": "user", "content": "hi"}], max_token=1)
    assert wrong_field.value.param == "max_token"
