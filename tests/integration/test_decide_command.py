"""`pocketvlm decide` and decisions in `batch`: what is printed, exit codes, calibration, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from pocketvlm import VLM, CalibrationError
from pocketvlm.cli import main

THERE, NOT_THERE = "Is there a red circle?", "Is there a yellow square?"


def run(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run a command in this process: its exit code, what it printed, and its standard error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["pocketvlm", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def decision(*arguments: str | Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(run("decide", *arguments, "--json")[1])
    return values


def test_yes_and_no(sample_png: Path) -> None:
    code, printed, _ = run("decide", THERE, "-i", sample_png, "--yes-no")
    assert code == 0
    assert [line.split()[1] for line in printed.splitlines()] == ["yes", "no"]
    assert run("decide", NOT_THERE, sample_png, "--yes-no")[0] == 1
    likely = decision(THERE, sample_png, "--yes-no")["probabilities"]["yes"]
    for at, expected in ((likely - 0.01, 0), (min(1, likely + 0.01), 1)):
        assert (
            run("decide", THERE, "-i", "-", "--yes-no", "--at", str(at), stdin=sample_png.read_bytes())[0] == expected
        )


def test_texts_and_numbers(sample_png: Path) -> None:
    code, printed, told = run("decide", "How many shapes are there?", sample_png, "--scale", "0-9")
    assert code == 0
    assert printed.splitlines()[-1].endswith("on average")
    assert "would rather" not in told
    mean = decision("How many shapes are there?", sample_png, "--scale", "0-9")["expectation"]
    assert run("decide", "How many shapes are there?", sample_png, "--scale", "0-9", "--at", str(mean + 0.1))[0] == 1
    code, printed, told = run("decide", "What is it?", sample_png, "--choice", "xyzzy", "--choice", "qwop")
    assert code == 0
    assert len(printed.splitlines()) == 2
    assert "would rather answer something else" in told
    assert run("decide", "What?", sample_png, "--choice", "a", "--choice", "b", "--at", "1")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([THERE], "--yes-no: is needed"),
        (["--yes-no"], "QUESTION: is missing"),
        ([THERE, "--yes-no", "--scale", "0-3"], "--scale: cannot be combined with --yes-no"),
        ([THERE, "--scale", "3-0"], "--scale: must go from the least"),
        ([THERE, "--choice", "a"], "--choice: must have from 2"),
        ([THERE, "--choice", "a", "--choice", "a"], "--choice: is the same"),
        ([THERE, "--choice", "a", "--choice", ""], "--choice: must not be empty"),
        ([THERE, "--yes-no", "--at", "2"], "--at: must be a probability"),
        ([THERE, "none.png", "--yes-no"], "none.png"),
        ([THERE, "--yes-no", "--calibration", "none.json"], "none.json: cannot be read"),
        (["--yes-no", "--calibrate", "none.csv"], "--calibration: is needed"),
        (["--yes-no", "--calibrate", "none.csv", "-i", "a.png"], "PICTURE: has no effect with --calibrate"),
        (["--yes-no", "--calibrate", "none.csv", "--at", "0.5"], "--at: has no effect with --calibrate"),
        (["--yes-no", "--calibrate", "none.csv", "--json"], "--json: has no effect with --calibrate"),
        (["--yes-no", "--calibrate", "none.csv", "--calibration", "x.json"], "none.csv: cannot be read"),
        (["--yes-no", "--calibrate", "none.csv", "--calibration", "none/x.json"], "is not in a folder that exists"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, told = run("decide", *arguments)
    assert code == 2
    assert message in told
    assert not printed
    assert not [*tmp_path.iterdir()]


def test_calibrated(tmp_path: Path, sample_png: Path) -> None:
    shutil.copy(sample_png, tmp_path / "a.png")
    rows = [("a.png", THERE, "yes"), ("a.png", NOT_THERE, "no")] * 5 + [("a.png", THERE, "no")] * 2
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "prompt", "answer"), *rows])
    target = tmp_path / "door.json"
    code, printed, _ = run("decide", "--yes-no", "--calibrate", tmp_path / "labels.csv", "--calibration", target)
    assert code == 0
    assert printed.startswith("12 questions, 83.3% right\ntemperature ")
    before = decision(THERE, sample_png, "--yes-no")
    after = decision(THERE, sample_png, "--yes-no", "--calibration", target)
    assert after["logprobs"] == pytest.approx(before["logprobs"], abs=0.01)
    temperature = json.loads(target.read_text())["temperature"]
    assert (before["temperature"], after["temperature"]) == (1.0, temperature)
    assert after["probabilities"]["yes"] < before["probabilities"]["yes"]  # five of seven times it was right
    target.write_text(target.read_text().replace('"fp_', '"fp_0'))
    with pytest.raises(CalibrationError, match="made with another model, iota"):
        VLM.load(calibration=target)


def test_in_a_batch(tmp_path: Path, sample_png: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(sample_png, photos / "a.png")
    (photos / "b.png").write_bytes(b"not a picture")
    arguments = ["batch", photos, "--prompt", THERE, "--yes-no", "-o", tmp_path / "there.csv"]
    assert run(*arguments)[0] == 1  # one is broken
    with (tmp_path / "there.csv").open(encoding="utf-8-sig", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["file"], first["answer"], first["error"]) == ("a.png", "yes", "")
    assert float(first["probability"]) > 0.8
    assert (second["answer"], second["probability"]) == ("", "")
    assert "not a picture" in second["error"]
    questions = [{"type": "predicate", "instructions": THERE}, {"type": "predicate", "instructions": NOT_THERE}]
    image = {"type": "input_image", "image_url": (photos / "a.png").as_uri()}
    lines: list[dict[str, Any]] = [
        {"image": "photos/a.png", "prompt": "What colour?", "choices": ["red", "blue"]},
        {"image": "photos/a.png", "prompt": "What colour?", "choices": ["red"]},
        {"custom_id": "theirs", "method": "POST", "url": "/v1/decisions",
         "body": {"input": [{"role": "user", "content": [image]}], "questions": questions}},
    ]  # fmt: skip
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("batch", tmp_path / "r.jsonl", "-o", tmp_path / "o.jsonl")[0] == 1
    ours, wrong, theirs = (json.loads(line)["response"] for line in (tmp_path / "o.jsonl").read_text().splitlines())
    assert ours["body"]["kind"] == "choice"
    assert (wrong["status_code"], wrong["body"]["error"]["param"]) == (400, "choices")
    there, not_there = (answer["probability"] for answer in theirs["body"]["answers"])
    assert there > 0.8 > 0.2 > not_there
