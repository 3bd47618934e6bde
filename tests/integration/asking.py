"""What tests ask engines that serve many, and waiting until nothing runs."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw

from engine_seam import never_ending, prompt_of
from pocketvlm import VLM
from pocketvlm.engine.interface import Generation
from pocketvlm.native.sampler import Sampling
from waiting import wait_until


def settle(engine: Any) -> None:
    """Wait until nothing runs in an engine, or that of a VLM; every lane is free then."""

    def settled() -> bool:
        now = engine.statistics()
        return now.state == "ok" and not (now.running or now.queued or now.encoding)

    wait_until(settled)


def disc(colour: str, seed: int = 0, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A circle on white; no two seeds give the same pixels."""
    picture = Image.new("RGB", size, "white")
    width, height = size
    ImageDraw.Draw(picture).ellipse((width // 8, height // 8, width * 7 // 8, height * 7 // 8), colour)
    picture.putpixel((0, 0), (seed % 256, seed // 256 % 256, seed // 65536))
    return picture


def asked(question: str, *pictures: Any) -> list[Any]:
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def generation(vlm: VLM, messages: list[Any], max_tokens: int | None = None, endless: bool = False) -> Generation:
    sampling = Sampling(logit_bias=never_ending(vlm) if endless else {})
    return Generation(prompt_of(vlm, messages), sampling, max_tokens=max_tokens)
