"""`pocketvlm batch`: every request gets one line, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pocketvlm import VLM
from pocketvlm.batch.lines import answer_line, error_line
from pocketvlm.batch.outputs import Outputs
from pocketvlm.batch.requests import Defaults, read_batch
from pocketvlm.batch.results import Results
from pocketvlm.batch.run import run
from pocketvlm.errors import PocketVLMError, RequestError
from pocketvlm.messages import ChatCompletion

COMMAND = [sys.executable, "-c", "from pocketvlm.cli import main; main()", "batch", "--threads", "1"]
QUESTION = "What is in the picture?"


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_notes_about_pictures_are_in_the_line() -> None:
    """Its times are not, so that a batch gives the same file again."""
    seen = {"original_size": (4, 4), "used_size": (4, 4), "tiles": 1, "tokens": 1, "shrunk": False, "encoded": 1}
    times = {"cache": "none", "read_ms": 1.0, "preprocess_ms": 1.0, "encode_ms": 1.0}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "prompt_tokens_details": {}}
    for notes, expected in ((("a note",), {"images": [{"pages": 2, "notes": ["a note"]}]}), ((), None)):
        images = [{**seen, **times, "pages": 2, "notes": notes}]
        answer = {"id": "x", "created": 1, "model": "m", "choices": [], "usage": usage, "timings": {"images": images}}
        line = json.loads(answer_line("a", ChatCompletion.model_validate(answer)))
        assert line["response"]["body"].get("timings") == expected


def said(line: dict[str, Any]) -> str:
    return str(line["response"]["body"]["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory, sample_png: Path) -> Path:
    """Thirty pictures, each of them another."""
    folder = tmp_path_factory.mktemp("album")
    picture = Image.open(sample_png).convert("RGB")
    for number in range(30):
        picture.putpixel((number, 0), (number, 0, 0))
        picture.save(folder / f"{number:02}.png", compress_level=1)
    return folder


@pytest.mark.slow
def test_killed_twice_and_resumed(album: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    before = 0
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            [*COMMAND, str(album), "--prompt", QUESTION, "-o", str(output)],
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") < before + 3):
            time.sleep(0.02)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 130), told
        assert "Traceback" not in told
        before = output.read_bytes().count(b"\n")
        assert 3 <= before < 30
    assert f"{before} of 30 are answered" in told
    with output.open("a") as file:
        file.write('{"id": "batch_req_7", "custom')  # as a process leaves it that is killed while it writes
    done = call(album, "--prompt", QUESTION, "-o", output)
    assert done.returncode == 0, done.stderr
    found = lines(output)
    assert [line["custom_id"] for line in found] == [f"{number:02}.png" for number in range(30)]
    assert all(said(line).startswith("A large red circle") for line in found)
    assert list(tmp_path.iterdir()) == [output]


def test_batch_file_of_openai(sample_png: Path, tmp_path: Path) -> None:
    def asked(custom_id: str, **body: Any) -> dict[str, Any]:
        return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}

    picture = {"type": "image_url", "image_url": {"url": str(sample_png)}}
    text = {"type": "text", "text": "How many shapes are there?"}
    message = {"role": "user", "content": [picture, text]}
    requests = [
        asked("a", model="x", messages=[message]),
        asked("hot", messages=[message], temperature=9),
        {**asked("elsewhere"), "url": "/v1/embeddings"},
        {"image": sample_png.name, "prompt": "What number is printed?"},
        {"image": "none.png", "custom_id": "none"},
        {"picture": "x"},
    ]
    source = tmp_path / "requests.jsonl"
    (tmp_path / sample_png.name).write_bytes(sample_png.read_bytes())
    source.write_text("\n".join(map(json.dumps, requests)) + "\n\n{broken\n")
    output = tmp_path / "answers.jsonl"
    done = call(source, "-o", output, "--prompt", "What is this?")
    assert done.returncode == 1, done.stderr  # some are errors
    found = {line["custom_id"]: line for line in lines(output)}
    assert list(found) == ["a", "hot", "elsewhere", "line-4", "none", "line-6", "line-8"]
    assert set(found["a"]) == {"id", "custom_id", "response", "error", "files"}
    assert (said(found["a"]), said(found["line-4"])) == ("2", "42")
    assert found["a"]["response"]["body"]["object"] == "chat.completion"
    errors = {name: line["response"]["body"].get("error") for name, line in found.items()}
    params = {name: error["param"] for name, error in errors.items() if error}
    assert params == {
        "hot": "temperature",
        "elsewhere": "url",
        "none": "messages.0.content.0.path",
        "line-6": "picture",
        "line-8": None,
    }
    assert found["hot"]["response"]["status_code"] == 400
    again = output.read_bytes()
    assert call(source, "-o", output, "--prompt", "What is this?").returncode == 1
    assert output.read_bytes() == again


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no requests"),
        ('{"custom_id": "a"}\n{"custom_id": "b"}\n{"custom_id": "a"}\n', "lines 1 and 3"),
        ("GIF89a\n\0\n", "no line that is a JSON object"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, words: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(content)
    with pytest.raises(RequestError, match=words):
        read_batch([source], Defaults())


@pytest.mark.parametrize("output", ["q.csv", "q.jsonl", "link.jsonl"])
def test_requests_are_not_written_over(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text('{"prompt": "Hi"}')
    Path("link.jsonl").symlink_to("q.jsonl")
    with pytest.raises(RequestError, match=r"q\.jsonl: is a source, and answers would be written into it"):
        read_batch([tmp_path / "q.jsonl"], Defaults(), outputs=Outputs.named(Path(output), None).paths)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_batch([tmp_path / "none.jsonl"], Defaults("?"))
    with pytest.raises(RequestError, match="no pictures"):
        read_batch([tmp_path], Defaults("?"))
    with pytest.raises(RequestError, match="--prompt"):
        read_batch([tmp_path], Defaults())


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a.jfif", True),
        ("A.JPE", True),
        ("b.hif", True),
        ("scan", True),  # no ending
        ("raw.CR2", True),
        (".hidden.png", False),
        (".thumbnails/a.png", False),
        ("._a.png", False),  # AppleDouble
        ("sub/__MACOSX/._b.jpg", False),
        (".DS_Store", False),
        ("notes.txt", False),
        ("LICENSE", False),
    ],
)
def test_which_files_of_a_folder_are_pictures(name: str, is_one: bool, sample_png: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    is_text = name.startswith((".DS", "L", "notes"))
    path.write_bytes(b"\0\0\0\1Bud1" if is_text else sample_png.read_bytes())
    (tmp_path / "other.png").write_bytes(b"?")
    names = [item.custom_id for item in read_batch([tmp_path], Defaults("?")).items]
    assert names == sorted([*[name] * is_one, "other.png"])


@pytest.mark.parametrize(
    ("written", "name"),
    [("5", "5"), ("12345678901234567890", "12345678901234567890"), ("1.50", "1.50"), ('"5"', "5"), ("null", "line-1")],
)
def test_custom_ids_that_are_numbers(written: str, name: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(f'{{"custom_id": {written}, "prompt": "?"}}\n')
    batch = read_batch([source], Defaults())
    assert [item.custom_id for item in batch.items] == [name]
    assert batch.body(batch.items[0])["messages"]


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("10:30.png", "path", "{}/10:30.png"),
        ("sub/a:b.png", "path", "{}/sub/a:b.png"),
        ("note:b.png", "path", "{}/note:b.png"),
        ("data:image/png;base64,AA", "url", "data:image/png;base64,AA"),
        ("FILE:///x.png", "url", "FILE:///x.png"),
        ("s3://x/y.png", "url", "s3://x/y.png"),
    ],
)
def test_a_path_may_have_a_colon(name: str, key: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"image": name, "prompt": "?"}))
    batch = read_batch([tmp_path / "in.jsonl"], Defaults())
    [picture, _] = batch.body(batch.items[0])["messages"][0]["content"]
    assert picture[key] == expected.format(tmp_path)


@pytest.mark.parametrize("written", ["true", "[5]", '{"a": 1}'])
def test_custom_ids_that_are_none(written: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(f'{{"custom_id": {written}, "prompt": "?"}}\n')
    batch = read_batch([source], Defaults())
    with pytest.raises(RequestError, match="must be a string") as caught:
        batch.body(batch.items[0])
    assert caught.value.param == "custom_id"


def test_another_output_is_not_touched(album: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    mark = read_batch([album], Defaults(QUESTION)).items[0].hash
    line = '{"id": "batch_req_%s", "custom_id": "00.png", "response": {"status_code": 200, "body": {%s}}}\n'
    other = line % (mark, '"system_fingerprint": "fp_other"')
    for content, words, *options in (
        ("notes\n", "line 1 is not an answer"),
        ("[" * 100_000 + "\n", "line 1 is not an answer"),
        ('{"custom_id": "x.png", "response": {"status_code": 200, "body": {}}}\n', "to other requests only, such as"),
        (other, "fp_other"),
        (other, "fp_other", "--ray-actors", "1"),
        (other, "or option, such as that to '00.png'; use --force", "--system", "Answer in one word."),
        (other, "or option, such as that to '00.png'; use --force", "--max-tokens", "9"),
    ):
        output.write_text(content)
        done = call(album, "--prompt", QUESTION, "-o", output, *options)
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert output.read_text() == content


def test_one_writer(tmp_path: Path) -> None:
    with Results(tmp_path / "out.jsonl", {}), pytest.raises(PocketVLMError, match="another batch"):
        Results(tmp_path / "out.jsonl", {})


def test_a_full_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    results = Results(tmp_path / "out.jsonl", {"a": "1", "b": "2"})
    results.add(error_line("a", RequestError("wrong")))
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "out.jsonl").stat().st_size + 9, most))
    try:
        with pytest.raises(PocketVLMError, match="cannot be written"):
            results.add(error_line("b", RequestError("wrong")))
        with pytest.raises(PocketVLMError, match="cannot be written"):
            results.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert list(results.entries) == ["a"]
    with Results(tmp_path / "out.jsonl", {"a": "1", "b": "2"}) as results:
        assert list(results.entries) == ["a"]


@pytest.mark.slow
def test_an_engine_that_crashes(album: Path, tmp_path: Path) -> None:
    """The process dies twice under way: all are answered, once."""
    job = read_batch([album], Defaults(QUESTION))
    order = job.hashes
    killed: list[int] = []
    with Results(tmp_path / "out.jsonl", order) as results, VLM.load(parallel=2, supervised=True, threads=1) as vlm:

        def told() -> None:
            child = vlm.statistics().child
            if len(results.done) in (4, 12) and child and child not in killed:
                killed.append(child)
                os.kill(child, signal.SIGKILL)

        run(vlm, job, results, parallel=2, progress=told)
        results.sort(order)
    assert len(killed) == 2
    found = lines(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in found] == [*order]
    assert all(line["response"]["status_code"] == 200 for line in found)


def test_an_engine_that_fails_ends_the_batch(album: Path, tmp_path: Path) -> None:
    job = read_batch([album], Defaults(QUESTION))
    with Results(tmp_path / "out.jsonl", job.hashes) as results, VLM.load(threads=1) as vlm:
        completion = vlm.chat([{"role": "user", "content": "Hi"}], max_tokens=1)
        results.add(answer_line("00.png", completion))
        vlm.close()
        with pytest.raises(PocketVLMError, match="closed"):
            run(vlm, job, results, parallel=2)
        assert results.done == {"00.png"}
