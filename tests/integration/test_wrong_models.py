"""Model files that are broken, of the wrong kind or no pair: a typed error naming the file, never a dead process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pocketvlm import VLM
from pocketvlm.engine.loading import trial
from pocketvlm.errors import (
    BundleError,
    ModelFormatError,
    ModelNotFoundError,
    PairingError,
    RequestError,
    SystemLimitError,
)
from pocketvlm.files.bundle import Bundle
from pocketvlm.vision.compatibility import check_files
from waiting import wait_until

QUESTION = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.new("RGB", (64, 64), "red")},
            {"type": "text", "text": "What is this?"},
        ],
    }
]


@pytest.fixture
def bundle(iota_bundle: Path, tmp_path: Path) -> Path:
    """A copy of iota's bundle that a test may spoil."""
    return Path(shutil.copytree(iota_bundle, tmp_path / "bundle"))


@pytest.fixture
def pair(bundle: Path) -> tuple[Path, Path]:
    opened = Bundle(bundle)
    model, mmproj = opened.file("model"), opened.file("mmproj")
    assert model and mmproj
    return model, mmproj


def patch(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in place; both must be of one length, and the old ones there once."""
    data = path.read_bytes()
    assert len(old) == len(new)
    assert data.count(old) == 1, data.count(old)
    path.write_bytes(data.replace(old, new))


def first(data: bytes, key: str, value: bytes) -> bytes:
    """A GGUF file with one more key in front of the others, its value with its type."""
    (count,) = struct.unpack_from("<Q", data, 16)
    return data[:16] + struct.pack("<QQ", count + 1, len(key)) + key.encode() + value + data[24:]


def test_a_good_pair_loads(pair: tuple[Path, Path]) -> None:
    with VLM.load(model=pair[0], mmproj=pair[1]) as vlm:
        assert vlm.chat(QUESTION).text


def test_roles_confused(pair: tuple[Path, Path]) -> None:
    model, mmproj = pair
    with pytest.raises(ModelFormatError, match=f"{mmproj.name}.*projector"):
        VLM.load(model=mmproj)
    with pytest.raises(ModelFormatError, match=f"{mmproj.name}.*projector"):
        VLM.load(model=mmproj, mmproj=model)
    with pytest.raises(ModelFormatError, match=f"{model.name}.*language model"):
        VLM.load(model=model, mmproj=model)


def test_projector_of_another_width(pair: tuple[Path, Path]) -> None:
    key = b"clip.vision.projection_dim" + (4).to_bytes(4, "little")
    patch(pair[1], key + (256).to_bytes(4, "little"), key + (512).to_bytes(4, "little"))
    with pytest.raises(PairingError, match=r"512 wide.*256"):
        VLM.load(model=pair[0], mmproj=pair[1])


def test_vocabulary_without_the_slice_tokens(pair: tuple[Path, Path]) -> None:
    """Equal widths, but libmtmd would put token -1 into a batch, and libllama would end the process."""
    patch(pair[0], b"<row_1_col_2>", b"<row_1_colx2>")
    with pytest.raises(PairingError, match=r"row_1_col_2"):
        VLM.load(model=pair[0], mmproj=pair[1])


def test_template_that_is_not_text(pair: tuple[Path, Path]) -> None:
    patch(pair[0], b"<|im_start|>{% for", b"<|im_star\xe9|>{% for")
    with pytest.raises(ModelFormatError, match=r"chat template is not UTF-8"):
        VLM.load(model=pair[0], mmproj=pair[1])


def test_picture_for_a_text_only_model(pair: tuple[Path, Path]) -> None:
    with VLM.load(pair[0]) as vlm:
        assert vlm.chat([{"role": "user", "content": "Hello"}], max_tokens=8).text
        with pytest.raises(RequestError, match="text-only") as caught:
            vlm.chat(QUESTION)
    assert caught.value.param == "messages.0.content.0"


@pytest.mark.parametrize("which", [0, 1], ids=["model", "mmproj"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:-1000], "truncated"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:200], "truncated"),
        (lambda data: data[:10], "truncated"),
        (lambda _: b"", "empty"),
        (lambda data: b"GGML" + data[4:], "not a GGUF"),
        (lambda _: b"just some text, not a model\n" * 50, "not a GGUF"),
        (lambda data: data[:4] + b"\x09" + data[5:], "version 9"),
        (lambda data: data[:16] + b"\xff" * 8 + data[24:], "broken header"),
        (lambda data: first(data, "general.alignment", struct.pack("<II", 4, 0)), "alignment is 0"),
        (lambda data: first(data, "general.alignment", struct.pack("<IQ", 8, 2) + b"32"), "alignment is '32'"),
        (lambda data: first(data, "x", struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000), "broken header"),
    ],
    ids=[
        "tail",
        "half",
        "header",
        "stub",
        "empty",
        "magic",
        "text",
        "version",
        "count",
        "alignment",
        "text-alignment",
        "nested",
    ],
)
def test_broken_files(pair: tuple[Path, Path], which: int, spoil: Callable[[bytes], bytes], words: str) -> None:
    path = pair[which]
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ModelFormatError, match=words) as caught:
        VLM.load(model=pair[0], mmproj=pair[1])
    assert caught.value.path == path


def test_missing_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.gguf"
    for empty in (lambda: VLM.load(""), lambda: VLM.load(model=pair[0], mmproj="")):
        with pytest.raises(ModelNotFoundError, match="is empty"):
            empty()
    for give in (lambda: VLM.load(nowhere), lambda: VLM.load(model=pair[0], mmproj=nowhere)):
        with pytest.raises(ModelNotFoundError, match="nowhere") as caught:
            give()
        assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(ModelNotFoundError):
        VLM.load(tmp_path / "no-bundle")
    with pytest.raises(BundleError, match="not a bundle"):
        VLM.load(tmp_path)
    (tmp_path / "photo.png").touch()
    with pytest.raises(BundleError, match=r"is not a bundle: a file, but not a \.gguf file"):
        VLM.load(tmp_path / "photo.png")


def test_arguments_that_contradict(bundle: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(PairingError):
        VLM.load(bundle, mmproj=pair[1])
    with pytest.raises(PairingError):
        VLM.load(bundle, model=pair[0])
    with pytest.raises(PairingError):
        VLM.load(mmproj=pair[1])


def test_bundle_whose_hash_does_not_match(bundle: Path, pair: tuple[Path, Path]) -> None:
    data = bytearray(pair[0].read_bytes())
    data[-100] ^= 1
    pair[0].write_bytes(data)
    with pytest.raises(BundleError, match=f"{pair[0].name}.*manifest"):
        VLM.load(bundle)


def twice(text: str) -> str:
    manifest = json.loads(text)
    return json.dumps({**manifest, "files": manifest["files"] * 2})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text[: len(text) // 2], "manifest.json"),
        (lambda _: "[]", "manifest.json"),
        (twice, "files: .*lists a file twice"),
        (lambda text: text.replace('"format": 1', '"format": 7'), "format"),
        (lambda text: json.dumps(json.loads(text) | {"surprise": 1}), "surprise"),
    ],
    ids=["cut", "list", "twice", "format", "key"],
)
def test_broken_manifest(bundle: Path, edit: Callable[[str], str], words: str) -> None:
    manifest = bundle / "manifest.json"
    manifest.write_text(edit(manifest.read_text()))
    with pytest.raises(BundleError, match=words):
        VLM.load(bundle)


def test_bundle_with_files_elsewhere_or_missing(bundle: Path, pair: tuple[Path, Path]) -> None:
    manifest = bundle / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace(pair[0].name, "../" + pair[0].name))
    with pytest.raises(BundleError, match="must lie in its folder"):
        VLM.load(bundle)
    manifest.write_text(text.replace(pair[0].name, "x" * 300))
    with pytest.raises(BundleError, match="cannot be looked up"):
        VLM.load(bundle)
    manifest.write_text(text)
    pair[1].unlink()
    with pytest.raises(BundleError, match=pair[1].name):
        VLM.load(bundle)


@pytest.fixture
def unusual(pair: tuple[Path, Path]) -> tuple[Path, Path]:
    """A pair of others, which lacks the last norm of its encoder and has another tensor. libmtmd can load it."""
    patch(pair[1], b"pocketvlm.weights_sha256", b"otherwise.weights_sha256")
    patch(pair[1], b"v.post_ln.weight", b"v.post_xx.weight")
    return pair


def test_unusual_files_are_tried_once(unusual: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    trial.CACHE.remove()
    with VLM.load(model=unusual[0], mmproj=unusual[1]) as vlm:
        assert vlm.chat(QUESTION, max_tokens=2).text
    monkeypatch.setattr(trial, "__name__", "this")
    VLM.load(model=unusual[0], mmproj=unusual[1]).close()


def test_a_trial_that_ends_early(unusual: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a module does that knows nothing of trials."""
    trial.CACHE.remove()
    monkeypatch.setattr(trial, "__name__", "this")
    for _ in range(2):  # failures are not remembered
        with pytest.raises(ModelFormatError, match=r"post_xx.*; llama\.cpp cannot load it") as caught:
            VLM.load(model=unusual[0], mmproj=unusual[1])
        assert caught.value.path == unusual[1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_trial_that_others_end(
    unusual: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trial.CACHE.remove()
    checked = check_files(*unusual, None)
    (tmp_path / "ended.py").write_text(
        "import os, time\nos.kill(os.getpid(), int(os.environ['NUMBER']))\ntime.sleep(60)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(trial, "__name__", "ended")

    def tried(number: int) -> None:
        monkeypatch.setenv("NUMBER", str(number))
        trial.try_files(checked)

    tried(signal.SIGTERM)
    assert "could not be tried: process ended with signal 15" in caplog.text
    with pytest.raises(SystemLimitError, match="memory is full"):
        tried(signal.SIGKILL)
    monkeypatch.setattr(trial, "_SECONDS", 0.1)
    monkeypatch.setattr(trial, "_BYTES_PER_SECOND", 1e12)
    with pytest.raises(ModelFormatError, match=r"post_xx.*cannot load it: not done after 0 s"):
        tried(0)


PARENT = """
import sys
from pocketvlm.system import subprocess
sys.path.append(sys.argv[1])
subprocess.run("child", take=lambda line: print(line, end="", flush=True) or True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import os, sys, time\nprint(os.getpid(), file=sys.stderr, flush=True)\nassert sys.stdin.read() == ''\n"
        "print('empty', file=sys.stderr, flush=True)\ntime.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        number = int(parent.stdout.readline())
        assert parent.stdout.readline() == "empty\n"
        parent.kill()
    wait_until(lambda: not is_alive(number))


def is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{number}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_freed_models_leave_nothing(iota_bundle: Path) -> None:
    """Loading and closing many times does not grow the process."""

    def anonymous_kb() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def once() -> None:
        with VLM.load(iota_bundle, context_size=512) as vlm:
            vlm.chat(QUESTION, max_tokens=4)

    for _ in range(3):
        once()
    before = anonymous_kb()
    for _ in range(10):
        once()
    assert anonymous_kb() - before < 8_000
