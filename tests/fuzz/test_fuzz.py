"""The harness itself: formats keep sound files, cases repeat, every kind of end is told apart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from fuzz.cases import Case, Original
from fuzz.documents import Weights, apply, at, paths, random_mutations
from fuzz.formats import picture_originals
from fuzz.formats.http_request import request
from fuzz.kinds import Attempt, Work, documents
from fuzz.outcomes import ABORT, ANSWERED, HANG, MEMORY, MESSAGE, REFUSED, TRACEBACK, not_clean
from fuzz.reduce import reduced
from fuzz.runner import Limits, Runner, anonymous_memory
from pocketvlm.errors import ImageError
from store import IOTA, ROOT

GROWTH = 200 << 20  # bytes
FORMATS = ("pdf", "matroska", "mpeg_ts", "iso_media")  # of documents
SOUND = {name: Original(*made) for name, made in picture_originals().items()}
SOUND["request"] = Original("http_request", request("/v1/x", {"messages": [{"role": "user", "content": "é"}]}))
SOUND["template"] = Original("template", (IOTA / "chat_template.jinja").read_bytes())
SOUND |= {name: original for name, original in documents.originals().items() if original.format in FORMATS}
LARGE = {
    "gguf": ROOT / "models" / "pocketvlm_models" / "iota" / "model-Q4_K_M.gguf",
    "onnx_model": ROOT / "models" / "pocketvlm_models" / "iota" / "vision-int8.onnx",
}


@pytest.mark.parametrize("name", SOUND)
def test_formats_keep_sound_files(name: str) -> None:
    assert SOUND[name].damaged([]) == SOUND[name].data


@pytest.mark.parametrize("name", LARGE)
def test_formats_keep_sound_models(name: str) -> None:
    data = LARGE[name].read_bytes()
    assert Original(name, data).damaged([]) == data


@pytest.mark.parametrize(
    "name",
    ["png rgb", "tiff big tiles", "jpeg turned", "webp animated", "gif animated", "request", "pdf form", "video mp4"],
)
def test_cases_repeat_and_differ(name: str) -> None:
    """Any mutations can be encoded, also after a journey through JSON, and nearly all change the file."""
    files, other = {name: SOUND[name]}, 0
    for number in range(200):
        case = Case.random("pictures", files, 1, number)
        assert case == Case.random("pictures", files, 1, number)
        data = SOUND[name].damaged(Case.load(case.dump()).mutations)
        assert data == SOUND[name].damaged(case.mutations)
        other += data != SOUND[name].data
    assert other > 160


def test_mutations_of_what_is_gone_do_nothing() -> None:
    document = {"a": [1, {"b": "text"}], "c": b"bytes"}
    assert apply(document, [["remove", ["a"]], ["set", ["a", 1, "b"], 7], ["bytes", ["a", 0], 0, 1, ""]]) == {
        "c": b"bytes"
    }
    assert document["a"] == [1, {"b": "text"}]


def test_small_parts_are_changed_beside_large_ones() -> None:
    document = {"settings": {"width": 1, "height": 2}, "vocabulary": [str(number) for number in range(50_000)]}
    rng, weights = Random(0), Weights()
    first = [random_mutations(document, rng, 100, weights)[0] for _ in range(300)]
    assert sum(mutation[1][0] == "settings" for mutation in first if isinstance(mutation[1], list)) > 12


def test_every_value_has_a_place() -> None:
    document = {"a": [1, {"b": 2}], "c": 3}
    found = [*paths(document)]
    assert found == [("a",), ("a", 0), ("a", 1), ("a", 1, "b"), ("c",)]
    assert [at(document, path) for path in found[-2:]] == [2, 3]


class Toy:
    """A kind whose cases do what their bytes say."""

    BATCH = 20

    def originals(self) -> dict[str, Original]:
        return {"toy": Original("json_text", b"{}")}

    @contextmanager
    def opened(self, _: Work) -> Iterator[Attempt]:
        yield act


def act(_: str, data: bytes) -> str | None:
    what = json.loads(data).get("do", "")
    if what == "refuse":
        raise ImageError("is damaged", "image")
    if what == "two lines":
        return "is\ndamaged"
    if what == "fail":
        raise KeyError("key")
    if what == "exit code":
        not_clean(TRACEBACK, "exits with 3")
    if what == "abort":
        os.abort()
    if what == "sleep":
        time.sleep(60)
    if what == "spin":
        while True:
            pass
    if what == "grow":
        block = b"x" * GROWTH
        time.sleep(60)
        return block[:1].decode()
    return None


def toy_runner(folder: Path, limits: Limits) -> Runner:
    toy = Toy()
    return Runner({"toy": toy}, {"toy": toy.originals()}, folder, limits, jobs=2)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return toy_runner(tmp_path, Limits(seconds=1.25, memory=64 << 30))


def toy_case(what: str, *more: list[object]) -> Case:
    return Case("toy", "toy", [["splice", 0, 2, json.dumps({"do": what}).encode().hex()], *more])


def test_ends_are_told_apart(runner: Runner) -> None:
    expected = {
        "": ANSWERED,
        "refuse": REFUSED,
        "two lines": MESSAGE,
        "fail": TRACEBACK,
        "exit code": TRACEBACK,
        "abort": ABORT,
        "sleep": HANG,
        "spin": HANG,
    }
    batches = [[toy_case(what) for what in [*expected, ""]], [toy_case("")] * 3]
    results = [result for result in runner.run(batches) if result]
    assert len(results) == len(expected) + 4  # the cases after one that ends the child run as well
    for case, verdict in results:
        what = json.loads(bytes.fromhex(case.mutations[0][3]))["do"]
        assert verdict.outcome == expected[what], verdict
    where = {verdict.outcome: verdict.where for _, verdict in results}
    assert "SIGABRT" in where[ABORT] and "act" in where[ABORT]
    assert "act" in where[HANG]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is watched on Linux alone")
def test_much_memory_is_noticed(tmp_path: Path) -> None:
    before = anonymous_memory(Path("/proc/self/status"))
    verdict = toy_runner(tmp_path, Limits(seconds=60, memory=before + GROWTH // 2)).alone(toy_case("grow"))
    assert verdict.outcome == MEMORY
    assert verdict.peak > GROWTH // 2


def test_cases_become_smaller(runner: Runner) -> None:
    case = toy_case("fail", ["set", ["x"], 1], ["set", ["y"], 2])
    found = reduced(case, runner.alone(case), runner.alone)
    assert found is not None
    assert found.mutations == toy_case("fail").mutations


@pytest.mark.slow
@pytest.mark.parametrize("what", [["--sound"], ["--cases", "8"]], ids=["sound", "damaged"])
def test_a_short_run_is_clean(what: list[str], tmp_path: Path) -> None:
    """Sound files are answered. Some damaged ones of every kind: the same each time; `make fuzz` runs others."""
    command = [sys.executable, "-m", "fuzz", *what, "--families", "", "--folder", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    try:
        output, _ = process.communicate(timeout=1500)
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0, output
