"""The command line as a person meets it: answers, and for every wrong input one line, exit code 2, no traceback."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pocketvlm.cli import main
from pocketvlm.cli.chat import chat
from pocketvlm.errors import RequestError

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from pocketvlm.cli import main; main()"]


def run(
    *arguments: str | Path, stdin: bytes = b"", timeout: int = 120, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **variables},
    )


def refused(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Run a command that must end with 2 and one line about why, in this process, and return its standard error."""
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["pocketvlm", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main()
    told = errors.getvalue()
    assert ended.value.code == 2, told
    assert told.count("error: ") == 1 and not told.startswith("\n"), told
    return told


def test_answers(sample_png: Path) -> None:
    done = run("chat", "How many shapes are there?", "-i", sample_png)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == "2"


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode elsewhere")
def test_names_of_files_in_any_encoding(sample_png: Path, tmp_path: Path) -> None:
    for name in (b"\xff.png", "日.png".encode()):
        shutil.copy(sample_png, os.fsencode(tmp_path) + b"/" + name)
    done = run("read", tmp_path, PYTHONIOENCODING="cp1252:strict")  # as on Windows
    assert done.returncode == 0, done.stderr.decode()
    assert {"# \\udcff.png", "# 日.png"} <= {*done.stdout.decode("utf-8").splitlines()}


def test_questions_in_any_encoding() -> None:
    done = run("chat", stdin=b"what is \xff\n", PYTHONIOENCODING="utf-8:strict")  # as in en_US.UTF-8
    assert done.returncode == 0 and done.stdout, done.stderr.decode()


def test_picture_from_standard_input_and_json(sample_png: Path) -> None:
    scan = io.BytesIO()
    Image.open(sample_png).convert("RGB").save(scan, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    done = run("chat", "What number is printed?", "-i", "-", "--json", stdin=scan.getvalue())
    answer = json.loads(done.stdout)
    assert answer["timings"]["images"][0]["pages"] == 2
    [note] = answer["timings"]["images"][0]["notes"]
    assert note == 'page 1 of 2 was seen; pages="1-2" shows all'
    assert "page 1 of 2 was seen; --pages 1-2 shows all" in done.stderr.decode()
    assert answer["choices"][0]["message"]["content"] == "42"
    assert answer["timings"]["images"][0]["original_size"] == [640, 480]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_timings(sample_png: Path) -> None:
    lines = f"/image {sample_png}\nWhat is in the picture?\n/timings\nWhat shape?\n/quit\n"
    done = run("chat", "--timings", stdin=lines.encode())
    told = done.stderr.decode()
    assert done.returncode == 0, told
    told = " ".join(told.split())  # lines may be broken anywhere
    pictures = re.findall(r"picture 1: 640x480 seen at \d+x\d+, tiles \d+, tokens \d+, cache none; read \d+ ms", told)
    assert len(pictures) == 1
    assert len(re.findall(r"queue \d+ ms, prefill \d+ ms \(\d+ tokens/s\), decode \d+ ms \(\d+ tok", told)) == 1


def test_conversation(sample_png: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk"
    lines = f"/image {sample_png}\nWhat shape is at the top left?\n/save {saved}\nWhat colour is it?\n/reset\n/quit\n"
    done = run("chat", stdin=lines.encode())
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split("\n")[:2] == ["A circle", "Red"]
    again = run("chat", stdin=f"/load {saved}\nWhat colour is it?\n".encode())
    assert again.stdout.decode() == "Red\n", again.stderr.decode()
    data = bytearray(saved.read_bytes())
    data[-100] ^= 4
    saved.write_bytes(data)
    assert "damaged" in refused("chat", stdin=f"/load {saved}\nWhat colour is it?\n".encode())


def test_picture_cache(sample_png: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    asked = ("chat", "What is this?", "-i", sample_png, "--max-tokens", "1", "--picture-cache", folder, "--json")
    tiers = [json.loads(run(*asked).stdout)["timings"]["images"][0]["cache"] for _ in range(2)]
    assert tiers == ["none", "disk"]
    assert run("chat", "--picture-cache", folder, stdin=b"/clear-cache\n").returncode == 0
    assert not list(folder.iterdir())
    assert "is not a folder" in refused(*asked[:-2], sample_png)
    assert "--picture-cache-size: must be at least 0" in refused("chat", "Hi", "--picture-cache-size", "-1")


def test_inspect_and_doctor(iota_bundle: Path) -> None:
    shown = run("inspect", iota_bundle)
    assert shown.returncode == 0
    text = shown.stdout.decode()
    assert max(map(len, text.splitlines())) <= 80
    for word in ("sha256 matches", "Q4_K", "smollm", "family smolvlm", "picture tokens"):
        assert word in text
    for file in iota_bundle.glob("*.gguf"):
        assert run("inspect", file).returncode == 0
    doctor = run("doctor")
    assert doctor.returncode == 0
    for word in ("threads", "llama-cpp-python", "onnxruntime"):
        assert word in doctor.stdout.decode()


def png_header(width: int, height: int) -> bytes:
    """The signature and IHDR of a PNG, and an IDAT that holds nothing: no decoder is needed to refuse it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def pictures(tmp_path: Path, sample_png: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not a picture\n" * 10)
    (folder / "cut.png").write_bytes(sample_png.read_bytes()[:2000])
    (folder / "huge.png").write_bytes(png_header(30000, 30000))
    (folder / "paper.pdf").write_bytes(b"%PDF-1.7\n" + b"x" * 500)
    (folder / "photo.heic").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1" + b"\x00" * 100)
    Image.new("RGB", (40, 30), "red").save(folder / "good.png")
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.png", "nowhere.png"),
        (".", "director"),
        ("empty.png", "empty"),
        ("text.png", "text.png"),
        ("cut.png", "truncated"),
        ("huge.png", "30000x30000"),
        ("paper.pdf", "paper.pdf"),
        ("photo.heic", "photo.heic"),
    ],
)
def test_wrong_pictures(pictures: Path, name: str, words: str) -> None:
    assert words in refused("chat", "What is this?", "-i", pictures / name)


def test_wrong_standard_input() -> None:
    assert "standard input" in refused("chat", "What is this?", "-i", "-")
    assert "not a picture" in refused("chat", "What is this?", "-i", "-", stdin=b"hello")


def test_network_is_not_touched() -> None:
    assert "network" in refused("chat", "What is this?", "-i", "https://example.com/cat.png")


def test_wrong_models_and_options(pictures: Path, tmp_path: Path) -> None:
    good = pictures / "good.png"
    assert "nowhere" in refused("chat", "Hi", "-m", tmp_path / "nowhere")
    assert "nowhere" in refused("verify", tmp_path / "nowhere")
    assert "none of that name was pulled" in refused("verify", "no-such-model")
    source = pictures.parent / "in.jsonl"
    source.write_text('{"custom_id": "a", "prompt": "Hi"}\n')
    assert "nowhere" in refused("batch", source, "-o", tmp_path / "out.jsonl", "-m", tmp_path / "nowhere")
    assert not (tmp_path / "out.jsonl").exists()
    assert "text.png" in refused("inspect", pictures / "text.png")
    assert "detail" in refused("chat", "Hi", "-i", good, "--detail", "huge")
    assert "temperature" in refused("chat", "Hi", "-i", good, "--temperature", "9")
    assert "fps" in refused("chat", "-i", good, "--fps", "0")
    assert "context" in refused("chat", "word " * 300, "-i", good, "--ctx-size", "256")


def test_what_to_give_instead(iota_bundle: Path) -> None:
    assert "no such file" in refused("inspect", "nope.gguf")
    for name in ("manifest.json", "proof.npz"):
        assert f"give the folder, {iota_bundle}" in " ".join(refused("inspect", iota_bundle / name).split())
    checkpoint = REPOSITORY / "models" / "iota" / "checkpoint"
    for given in (
        ["inspect", checkpoint / "model.safetensors"],
        ["inspect", checkpoint],
        ["verify", checkpoint],
        ["chat", "Hi", "-m", checkpoint],
    ):
        assert "`pocketvlm convert` makes a bundle of it" in refused(*given)


def test_interrupt_ends_quietly(sample_png: Path) -> None:
    arguments = ["chat", "Describe the picture.", "-i", str(sample_png), "--temperature", "2", "--max-tokens", "7000"]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode in (130, 0)
    assert b"Traceback" not in told


# Ctrl-C comes while a module is being loaded: as it is found, or within an extension, which makes an ImportError of it.
INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
        if name == {extension!r}:
            raise ImportError("initialization failed") from KeyboardInterrupt()
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
from pocketvlm.cli import main
main()
"""


@pytest.mark.parametrize(
    ("name", "extension", "arguments", "words"),
    [
        ("", "pydantic_core", ["chat", "Hi"], ""),
        ("pocketvlm.chat.vlm", "", ["chat", "Hi"], ""),
        ("", "onnxruntime", ["chat", "Hi"], ""),
        ("pocketvlm_converters.catalog.entry", "", ["models"], "interrupted\n"),
        ("pocketvlm_converters.convert", "", ["convert", "nowhere", "-o", "none"], "interrupted\n"),
        ("pocketvlm.batch.requests", "", ["batch", "nowhere", "-o", "none"], "interrupted\n"),
    ],
)
def test_interrupt_while_it_loads(name: str, extension: str, arguments: list[str], words: str) -> None:
    code = INTERRUPTED.format(name=name, extension=extension)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.decode()) == (130, words)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
@pytest.mark.parametrize(
    ("arguments", "stdin"), [(["--version"], b""), (["inspect"], b""), (["chat", "Hi"], b""), (["chat"], b"Hi\n")]
)
def test_a_full_disk_is_told_in_a_line(arguments: list[str], stdin: bytes, iota_bundle: Path) -> None:
    more = [str(iota_bundle)] if arguments == ["inspect"] else []
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *arguments, *more], input=stdin, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    told = done.stderr.decode()
    assert done.returncode == 2, told
    assert told.startswith("error: ") and told.count("\n") == 1 and "No space left" in told


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("/image none.png\nHi\n", "error: none.png: no such file\n"),
        ("/pictures\nHi\n", "error: unknown command /pictures; /help lists the commands\n"),
        ("nowhere/x.png what?\nHi\n", "error: nowhere/x.png: no such file\n"),
        ('/image "{}"\n/image none.png\n', "error: none.png: no such file\n"),
    ],
)
def test_a_conversation_from_a_file_ends_at_what_is_wrong(lines: str, words: str, sample_png: Path) -> None:
    done = run("chat", stdin=lines.replace("{}", str(sample_png)).encode())
    expected = words.replace("{0}", "{}").replace("{}", str(sample_png))
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (2, "", expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"as_json": True}, "--json: needs a question"),
        ({"image": ["-"]}, "-i -: needs a question: standard input cannot be both"),
        ({"detail": "ultra"}, "--detail: must be low, auto or high, not ultra"),
    ],
)
def test_options_that_would_be_ignored(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        chat(**options)


def test_nobody_to_tell() -> None:
    """As cron and daemons may start it, without standard files."""
    for arguments, files in ((["--version"], ">&- 2>&-"), (["chat"], "<&-")):
        closed = ["sh", "-c", f'exec "$@" {files}', "sh", *COMMAND, *arguments]
        assert subprocess.run(closed, timeout=60, check=False).returncode == 0


def test_json_schema(sample_png: Path, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object", "properties": {"n": {"enum": [2, 3]}}, "required": ["n"], "maxProperties": 1}')
    done = run("chat", "How many shapes are there?", "-i", sample_png, "--json-schema", path)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["n"] in (2, 3)
    path.write_text('{"not": {}}')
    assert "schema.not: the keyword not of response_format cannot be enforced" in refused(
        "chat", "hi", "--json-schema", path
    )
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        assert "--json-schema" in refused("chat", "hi", "--json-schema", path)
    assert "--json-schema" in refused("chat", "hi", "--json-schema", tmp_path / "none.json")
