"""A batch that is run again asks what it must, and never loses or doubles a line."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from pocketvlm import VLM
from pocketvlm.batch.lines import error_line
from pocketvlm.batch.requests import BatchInput, Defaults, read_batch
from pocketvlm.batch.results import Results
from pocketvlm.batch.resume import Resumption, resume
from pocketvlm.batch.run import run
from pocketvlm.cli.commands import app
from pocketvlm.errors import PocketVLMError, RequestError
from pocketvlm.reading.progress_file import ProgressFile

COMMAND = [sys.executable, "-c", "from pocketvlm.cli import main; main()", "batch", "--threads", "1"]
SHORT = {"max_tokens": 2}


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.load(threads=1) as vlm:
        yield vlm


def paint(path: Path, red: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (red, 0, 0)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate("abcd"):
        paint(tmp_path / "photos" / f"{name}.png", 50 * number)
    return tmp_path / "photos"


@pytest.fixture
def ask(vlm: VLM, photos: Path, tmp_path: Path) -> Callable[..., tuple[list[str], Resumption]]:
    """Bring the record up to date; return what was asked, and why."""

    def ask(prompt: str = "What is this?", *, source: Path = photos, **options: Any) -> tuple[list[str], Resumption]:
        batch = read_batch([source], Defaults(prompt, fields=SHORT))
        with Results(tmp_path / "out.jsonl", batch.hashes) as results:
            resumption = resume(results, batch, vlm.info.fingerprint, **options)
            asked = [item.custom_id for item in batch.items if item.custom_id not in results.done]
            run(vlm, batch, results, parallel=1)
            results.sort(batch.hashes)
        return asked, resumption

    return ask


def record(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("ascii").splitlines()]


def names(tmp_path: Path) -> list[str]:
    return [line["custom_id"] for line in record(tmp_path)]


Ask = Callable[..., tuple[list[str], Resumption]]


def test_what_is_asked_again(ask: Ask, photos: Path, tmp_path: Path) -> None:
    (photos / "b.png").write_bytes(b"\x89PNG")
    assert ask()[0] == ["a.png", "b.png", "c.png", "d.png"]
    assert [line["response"]["status_code"] for line in record(tmp_path)] == [200, 400, 200, 200]
    before = (tmp_path / "out.jsonl").read_bytes()
    asked, resumption = ask()
    assert asked == resumption.failed == ["b.png"], "what has failed"
    assert (tmp_path / "out.jsonl").read_bytes() == before

    paint(photos / "b.png", 7)
    paint(photos / "c.png", 8)
    (photos / "a.png").unlink()
    paint(photos / "aa.png", 9)
    asked, resumption = ask()
    assert asked == ["aa.png", "b.png", "c.png"]
    assert (resumption.failed, resumption.changed, resumption.gone) == (["b.png"], ["c.png"], ["a.png"])
    assert names(tmp_path) == ["aa.png", "b.png", "c.png", "d.png", "a.png"], "an answer to what is gone stays"
    assert ask()[0] == []


def test_a_touch_is_not_a_change(ask: Ask, photos: Path, tmp_path: Path) -> None:
    ask()
    first = record(tmp_path)
    data = (photos / "a.png").read_bytes()
    (photos / "a.png").unlink()
    (photos / "a.png").write_bytes(data)
    os.utime(photos / "b.png", ns=(1, 2_000_000_000))
    assert ask()[0] == []
    assert record(tmp_path)[1]["files"][0]["modified_ns"] == 2_000_000_000, "it need not be read again"
    assert [line["response"] for line in record(tmp_path)] == [line["response"] for line in first]


def test_a_change_that_sets_the_time_back(ask: Ask, photos: Path) -> None:
    path = photos / "a.png"
    ask()
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    asked, resumption = ask()
    assert asked == resumption.changed == ["a.png"]


def test_metadata_of_a_photo_is_not_its_content(ask: Ask, photos: Path) -> None:
    """Photo programs write into JPEG files. How a photo is held counts."""
    for name, colour in (("x.jpg", "red"), ("y.jpg", "blue")):
        Image.new("RGB", (32, 32), colour).save(photos / name)
    ask()
    for name, tag, value in (("x.jpg", 0x010E, "A day at the sea"), ("y.jpg", 0x0112, 6)):
        image, exif = Image.open(photos / name), Image.Exif()
        exif[tag] = value
        image.save(photos / name, quality="keep", exif=exif, comment="rated")
    asked, resumption = ask()
    assert asked == resumption.changed == ["y.jpg"]
    assert ask()[0] == []


def test_another_name(ask: Ask, photos: Path, tmp_path: Path) -> None:
    ask()
    answers = {line["custom_id"]: line["response"]["body"]["id"] for line in record(tmp_path)}
    (photos / "2024").mkdir()
    (photos / "b.png").rename(photos / "2024" / "holiday.png")
    (photos / "copy.png").write_bytes((photos / "a.png").read_bytes())
    asked, resumption = ask()
    assert asked == ["copy.png"], "the original of a copy is still there"
    assert resumption.moved == 1 and resumption.gone == []
    assert names(tmp_path) == ["2024/holiday.png", "a.png", "c.png", "copy.png", "d.png"]
    assert record(tmp_path)[0]["response"]["body"]["id"] == answers["b.png"]
    assert ask()[0] == []


def test_another_prompt_needs_force(ask: Ask, tmp_path: Path) -> None:
    ask()
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(
        RequestError, match=r"another prompt, request or option, .*use --force to ask again, or another"
    ):
        ask("What colour is this?")
    assert (tmp_path / "out.jsonl").read_bytes() == before
    asked, resumption = ask("What colour is this?", force=True)
    assert asked == resumption.forced == ["a.png", "b.png", "c.png", "d.png"] == names(tmp_path)
    assert ask("What colour is this?")[0] == []


def test_another_model_needs_force(photos: Path, tmp_path: Path, ask: Ask, vlm: VLM) -> None:
    ask()
    batch = read_batch([photos], Defaults("What is this?", fields=SHORT))
    with Results(tmp_path / "out.jsonl", batch.hashes) as results:
        with pytest.raises(RequestError, match=f"another model .{vlm.info.fingerprint}, this is fp_x.*--force"):
            resume(results, batch, "fp_x")
        assert len(resume(results, batch, "fp_x", force=True).forced) == 4


def test_lines_of_earlier_versions_count(ask: Ask, photos: Path, tmp_path: Path) -> None:
    ask()
    old = [{key: value for key, value in line.items() if key != "files"} for line in record(tmp_path)]
    (tmp_path / "out.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in old))
    paint(photos / "a.png", 99)  # nothing says what it was
    assert ask()[0] == []


def test_lines_that_were_joined(ask: Ask, tmp_path: Path) -> None:
    ask()
    lines = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_text("".join([*lines, lines[0]]))
    assert ask()[0] == []
    assert (tmp_path / "out.jsonl").read_text().splitlines(keepends=True) == lines


def test_pictures_of_request_lines(ask: Ask, photos: Path, tmp_path: Path) -> None:
    """A picture of a line that changes is seen; one that is gone leaves the answer as it is."""
    picture = {"type": "image_url", "image_url": {"url": str(photos / "b.png")}}
    body = {"messages": [{"role": "user", "content": [picture, {"type": "text", "text": "?"}]}]}
    lines = [{"image": ["photos/a.png", "photos/c.png"]}, {"custom_id": "openai", "body": body}, {"prompt": "Hi"}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert len(ask(source=source)[0]) == 3
    assert [len(line.get("files", ())) for line in record(tmp_path)] == [2, 1, 0]
    assert ask(source=source)[0] == []
    paint(photos / "c.png", 77)
    paint(photos / "b.png", 78)
    assert ask(source=source)[0] == ["line-1", "openai"]
    (photos / "c.png").unlink()
    assert ask(source=source)[0] == []
    with source.open("a") as file:
        file.write('{"prompt": "Hello"}\n')
    assert ask(source=source)[0] == ["line-4"]


# ---- the file


@pytest.mark.parametrize("keys", ['"status_code": 1e999, "body": {}}', '"status_code": 200, "body": {}}, "files": [5]'])
def test_a_line_that_is_no_answer(keys: str, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text('{"custom_id": "a", "response": {' + keys + "}\n")
    with pytest.raises(RequestError, match="line 1 is not an answer"):
        Results(tmp_path / "out.jsonl", {})


@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize("content", ['{"my": "settings"}', "notes", "%PDF-1.7"])
def test_a_file_of_others_is_kept(content: str, ending: str, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text(content + ending)
    with pytest.raises(RequestError, match="line 1 is not an answer of a batch"):
        Results(tmp_path / "out.jsonl", {})
    with pytest.raises(RequestError, match="is not a"):
        ProgressFile(tmp_path / "out.jsonl", {})
    assert (tmp_path / "out.jsonl").read_text() == content + ending


@pytest.mark.parametrize("end", ['{"id": "batch_req_7", "custom', '{"i', '{"id": "batch_r\0\0', "\0\0"])
def test_a_line_that_is_incomplete_is_cut_off(end: str, tmp_path: Path) -> None:
    line = '{"id": "x", "custom_id": "a", "response": {"status_code": 400, "body": {}}}'
    for before in ("", f"{line}\n"):
        (tmp_path / "out.jsonl").write_text(before + end)
        Results(tmp_path / "out.jsonl", {}).close()
        assert (tmp_path / "out.jsonl").read_text() == before


def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    """An editor may have removed it."""
    line = '{"custom_id": "a", "response": {"status_code": 400, "body": {}}}'
    (tmp_path / "out.jsonl").write_text(line)
    with Results(tmp_path / "out.jsonl", {"b": "1"}) as results:
        results.add(error_line("b", RequestError("wrong")))
        assert list(results.entries) == ["a", "b"]
    assert (tmp_path / "out.jsonl").read_text().startswith(f"{line}\n{{")


def batch_of(photos: Path) -> BatchInput:
    return read_batch([photos], Defaults("What is this?", fields=SHORT))


@pytest.mark.parametrize("moment", ["leaving out", "writing", "replacing"])
def test_killed_while_lines_are_replaced(moment: str, ask: Ask, vlm: VLM, photos: Path, tmp_path: Path) -> None:
    """The record is the old one or the new one, whole."""
    ask()
    before = (tmp_path / "out.jsonl").read_bytes()
    paint(photos / "a.png", 200)
    script = f"""
import os, pathlib
from pocketvlm.batch import results as module
from pocketvlm.batch.lines import error_line
from pocketvlm.batch.requests import Defaults, read_batch
from pocketvlm.batch.resume import resume
from pathlib import Path
batch = read_batch([Path({str(photos)!r})], Defaults("What is this?", fields={SHORT!r}))
results = module.Results(Path({str(tmp_path / "out.jsonl")!r}), batch.hashes)
assert resume(results, batch, {vlm.info.fingerprint!r}).changed == ["a.png"]
die = lambda *_: os._exit(9)
if {moment!r} == "leaving out":
    results.leaving_out = die
elif {moment!r} == "writing":
    os.fsync = die
else:
    replace = pathlib.Path.replace
    pathlib.Path.replace = lambda *args: (replace(*args), os._exit(9))
results.add(error_line("a.png", ValueError("x")))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 9
    after = (tmp_path / "out.jsonl").read_bytes()
    kept = b"".join(line for line in before.splitlines(keepends=True) if b'"a.png"' not in line)
    assert after == (kept if moment == "replacing" else before)
    assert ask()[0] == ["a.png"] and names(tmp_path) == ["a.png", "b.png", "c.png", "d.png"]


def test_it_stays_locked_and_a_link_stays_one(ask: Ask, vlm: VLM, photos: Path, tmp_path: Path) -> None:
    ask()
    (tmp_path / "out.jsonl").rename(tmp_path / "real.jsonl")
    (tmp_path / "out.jsonl").symlink_to("real.jsonl")
    paint(photos / "a.png", 201)
    batch = batch_of(photos)
    with Results(tmp_path / "out.jsonl", batch.hashes) as results:
        resume(results, batch, vlm.info.fingerprint)
        run(vlm, batch, results, parallel=1)
        for name in ("out.jsonl", "real.jsonl"):
            with pytest.raises(PocketVLMError, match="another batch is writing it"):
                Results(tmp_path / name, batch.hashes)
    assert (tmp_path / "out.jsonl").is_symlink() and len(record(tmp_path)) == 4


def test_a_record_that_is_replaced_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another batch puts a new file in its place before we have the lock: the new one counts."""
    fcntl = pytest.importorskip("fcntl")
    line = '{"custom_id": "%s", "response": {"status_code": 400, "body": {}}}\n'
    (tmp_path / "out.jsonl").write_text(line % "old")
    (tmp_path / "new.jsonl").write_text(line % "new")
    lock = fcntl.flock

    def flock(*arguments: Any) -> None:
        if (tmp_path / "new.jsonl").exists():
            (tmp_path / "new.jsonl").replace(tmp_path / "out.jsonl")
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Results(tmp_path / "out.jsonl", {}) as results:
        assert list(results.entries) == ["new"]


def test_a_log_that_is_removed_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process is done with it, and removes it before we have the lock: we begin a new one."""
    fcntl = pytest.importorskip("fcntl")
    path, lock = tmp_path / ".read.jsonl", fcntl.flock
    first = ProgressFile(path, {})

    def flock(*arguments: Any) -> None:
        first.close(remove=True)
        monkeypatch.undo()
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    with ProgressFile(path, {}):
        assert path.exists()


# ---- the command


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, encoding="utf-8", timeout=120, check=False
    )


def test_answers_on_standard_output(photos: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"shapes": {"type": "integer"}}, "required": ["shapes"]}')
    (photos / "b.png").write_bytes(b"")
    options = ("--prompt", "How many shapes are there?", "--json-schema", schema)
    done = call(photos, tmp_path / "photos" / "*.png", *options, "-o", "-", "--format", "csv")
    assert done.returncode == 1, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout, newline="")))
    assert {Path(row["file"]).name for row in rows if row["shapes"].isdigit()} == {"a.png", "c.png", "d.png"}
    [wrong] = [row for row in rows if row["error"]]
    assert wrong["shapes"] == "" and wrong["error"].endswith("b.png: is empty")
    assert "3 of 4 are answered; 4 asked in" in done.stderr and "1 failed" in done.stderr
    assert not list(tmp_path.glob("*.jsonl"))


def test_stopped_before_the_first_answer(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left that would keep the same command from running."""

    def stop(*_: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(VLM, "load", stop)
    for _ in range(2):
        done = CliRunner().invoke(app, ["batch", str(photos), "--prompt", "?", "-o", str(tmp_path / "out.csv")])
        assert done.exit_code == 130 and "0 of 4 are answered" in done.stderr, (done.stderr, done.exception)
        assert [*tmp_path.iterdir()] == [photos]


def test_a_table_is_made_of_the_record(photos: Path, tmp_path: Path) -> None:
    """Without asking anything, and with a sidecar for each."""
    options = ("--prompt", "What is this?", "--max-tokens", "2")
    assert call(photos, *options, "-o", tmp_path / "out.jsonl").returncode == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    done = call(photos, *options, "-o", tmp_path / "out.csv", "--sidecar", "txt")
    assert done.returncode == 0 and "asked in" not in done.stderr, done.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text("utf-8-sig"), newline="")))
    assert [row["file"] for row in rows] == ["a.png", "b.png", "c.png", "d.png"]
    assert [(photos / f"{name}.txt").read_text().strip() for name in "abcd"] == [row["answer"].strip() for row in rows]
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_changed_picture_gets_another_sidecar(photos: Path, tmp_path: Path, sample_png: Path) -> None:
    options = ("--prompt", "What is in the picture?", "-o", tmp_path / "out.jsonl", "--sidecar", "xmp")
    assert call(photos, *options).returncode == 0
    before = (photos / "a.png.xmp").read_text()
    (photos / "b.png.xmp").write_text("edited by hand")
    for name in "ab":
        (photos / f"{name}.png").write_bytes(sample_png.read_bytes())
    done = call(photos, *options)
    assert done.returncode == 0 and "2 of 4 are answered already; asked again: 2 have other content" in done.stderr
    assert "large red circle" in (photos / "a.png.xmp").read_text() != before
    assert (photos / "b.png.xmp").read_text() == "edited by hand"
    assert "sidecars of others, which stay as they are: 1, such as" in done.stderr
