"""What `pocketvlm bench` measures and draws; how long things take is no matter of tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pocketvlm import VLM
from pocketvlm.bench.measure import STEPS, Case, Report, Spread, fresh, photo, run
from pocketvlm.bench.picture import draw
from pocketvlm.cli.commands import app
from pocketvlm.errors import RequestError
from pocketvlm.system.machine import process_memory

FIELDS = ("first", "second", "again", "moved", "encode", "prefill", "decode")


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.load(vision="gguf") as vlm:
        yield vlm


def spread(value: float) -> Spread:
    return Spread(value, value / 2, value * 2)


REPORT = Report(
    "m",
    "f",
    "e",
    "plain",
    "f16",
    2,
    3,
    64,
    (
        Case(
            "640x480",
            (640, 480),
            (512, 384),
            "auto",
            2,
            128,
            *(spread(v) for v in (2000, 80, 70, 300, 1500, 350, 100, 2)),
        ),
    ),
    None,
)


def test_measures(vlm: VLM) -> None:
    steps = []
    report = run(vlm, [photo(300, 200)], ["low", "high"], repeat=2, tokens=5, step=lambda: steps.append(0))
    assert len(steps) == 2 * 2 * len(STEPS)
    low, high = report.cases
    assert (low.detail, high.detail) == ("low", "high")
    assert low.size == high.size == (300, 200)
    assert low.tiles < high.tiles and low.image_tokens < high.image_tokens
    for case in report.cases:
        for field in FIELDS:
            found: Spread = getattr(case, field)
            assert 0 < found.low <= found.median <= found.high
        assert case.encode.low < case.first.high
        assert 1 <= case.threads.low <= case.threads.high <= report.threads


def test_only_the_first_sight_encodes(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called a repetition is one: the engine says which pictures it knew."""
    cached = []
    stream = VLM.stream

    def watched(self: VLM, *given: object, **fields: object) -> Iterator[object]:
        for chunk in stream(self, *given, **fields):  # type: ignore[arg-type]
            if chunk.usage and chunk.timings:
                cached.append([image.cache for image in chunk.timings.images])
            yield chunk

    monkeypatch.setattr(VLM, "stream", watched)
    run(vlm, [photo(40, 30)], ["low"], repeat=2, tokens=2)
    rounds = cached[1:]  # the first is to warm up
    assert len(rounds) == 2 * len(STEPS)
    for first, second, again, moved, read in (rounds[:5], rounds[5:]):
        assert first == ["none"]
        assert second == again == ["kv"] and moved == ["memory"]
        assert read == []


def test_fresh_pictures_look_alike_and_differ_everywhere() -> None:
    subject = photo(64, 48)
    one, two = fresh(subject), fresh(subject)
    assert one.shape == (48, 64, 3) and one.dtype == np.uint8
    assert np.abs(one.astype(int) - subject.pixels.astype(int)).max() == 1
    for y in range(0, 48, 8):
        for x in range(0, 64, 8):
            assert (one[y : y + 8, x : x + 8] != two[y : y + 8, x : x + 8]).any()


def test_draws_every_case() -> None:
    one = draw(REPORT, "a machine")
    two = draw(replace(REPORT, cases=REPORT.cases * 2), "a machine")
    assert one.mode == "RGB" and one.width == two.width < one.width + one.height < two.width + two.height
    assert len(one.getcolors(one.width * one.height) or ()) > 50  # text and bars, smooth
    draw(replace(REPORT, model="m" * 300), "µ" * 300)


def test_the_time_of_the_encoder_is_part_of_the_bar() -> None:
    def blue(report: Report) -> int:
        pixels = np.asarray(draw(report, "")).reshape(-1, 3)
        return int((pixels == (0x2F, 0x6D, 0xB5)).all(1).sum())

    less = replace(REPORT, cases=(replace(REPORT.cases[0], encode=spread(750)),))
    legend = blue(replace(REPORT, cases=(replace(REPORT.cases[0], encode=spread(0)),)))
    assert blue(REPORT) - legend == pytest.approx(2 * (blue(less) - legend), rel=0.1)


def test_the_scale_has_room_for_the_spread() -> None:
    """The line of the longest spread ends inside the picture, where its value says, and is as long as it should be."""

    def ends(high: float) -> tuple[int, int]:
        first = Spread(94, 90, high)
        report = replace(REPORT, cases=(replace(REPORT.cases[0], first=first, encode=spread(30), moved=spread(50)),))
        row = np.asarray(draw(report, ""))[150 + 36 + 11, 260:]  # the middle of the first bar
        dark = np.flatnonzero((row < 0x60).all(1))
        gap = int(np.flatnonzero(np.diff(dark) > 6)[0])  # before the text behind it
        return int(dark[0]), int(dark[gap])

    for high in (200, 436, 9000):
        low_end, high_end = ends(high)
        assert 500 < high_end < 1000 - 260 - 40, "the longest spread fills the scale"
        assert low_end / high_end == pytest.approx(90 / high, abs=0.02)


def test_on_the_command_line(tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    options = ["--size", "64x48", "--repeat", "1", "--tokens", "2", "--vision", "gguf"]
    done = CliRunner().invoke(app, ["bench", *options, "--json", "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["model"] == "iota" and found["load_ms"] > 0
    assert set(FIELDS) < set(found["cases"][0])
    assert Image.open(plot).width == 1000
    assert list(tmp_path.iterdir()) == [plot]
    shown = CliRunner().invoke(app, ["bench", *options]).stdout
    for words in ("iota", "64x48", "a new picture", "prefill", "decode"):
        assert words in shown


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--detail", "huge"], "--detail"),
        (["--repeat", "0"], "--repeat"),
        (["--tokens", "1"], "--tokens"),
        (["--size", "12"], "--size"),
        (["--size", "0x9"], "--size"),
        (["--size", "99999x99999"], "--size"),
        (["--size", "9x9", "--picture", "docs/sample.png"], "--size"),
        (["--picture", "nowhere.png"], "nowhere.png"),
        (["--plot", "plot.gif"], "--plot"),
        (["--plot", "nowhere/plot.png"], "--plot"),
        (["--vision", "both"], "vision"),
        (["nowhere"], "nowhere"),
    ],
)
def test_wrong_use(options: list[str], named: str) -> None:
    """main() makes one line and exit code 2 of these errors."""
    error = CliRunner().invoke(app, ["bench", *options]).exception
    assert isinstance(error, RequestError | FileNotFoundError) and named in str(error), repr(error)


def test_memory_of_a_process() -> None:
    before = process_memory()
    if before is None:
        pytest.skip("this system does not say")
    # Pages of its own: an array may get some that were freed before.
    with mmap(-1, 32_000_000, flags=MAP_PRIVATE | MAP_ANONYMOUS) as ballast:
        ballast.write(b"x" * 32_000_000)
        after = process_memory()
    assert after is not None
    assert after.anonymous - before.anonymous > 30_000_000
    assert after.anonymous <= after.resident <= after.peak
    assert process_memory(2**22 + 1) is None
