"""What an engine is told is checked before anything is loaded: ggml ends the process over some of it."""

from __future__ import annotations

import pytest

from pocketvlm import VLM
from pocketvlm.engine.interface import EngineOptions
from pocketvlm.errors import RequestError


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("threads", 0, "from 1 to 512"),
        ("threads", 99_999, "from 1 to 512"),
        ("threads", 1.5, "whole number"),
        ("context_size", -1, "from 1 to 16,777,216"),
        ("context_size", 10**9, "from 1 to 16,777,216"),
        ("context_size", "8", "whole number"),
        ("parallel", 0, "from 1 to 256"),
        ("parallel", 257, "from 1 to 256"),
        ("parallel", None, "whole number"),
        ("gpu_layers", -2, "at least -1"),
        ("picture_cache_size", -1, "at least 0"),
        ("picture_files_size", -1, "at least 0"),
        ("stuck_after", float("nan"), "more than 0"),
        ("speculate", "maybe", "use auto, off or on"),
    ],
)
def test_what_no_engine_takes_is_refused_by_name(name: str, value: object, why: str) -> None:
    with pytest.raises(RequestError, match=why) as refused:
        EngineOptions(**{name: value})  # type: ignore[arg-type]
    assert refused.value.param == name


@pytest.mark.parametrize("name", ["max_pixels", "max_image_tokens"])
def test_limits_of_pictures_leave_something(name: str) -> None:
    with pytest.raises(RequestError, match="at least 1") as refused:
        VLM.load(**{name: 0})  # type: ignore[arg-type]
    assert refused.value.param == name
