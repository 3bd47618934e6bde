"""What a version has left on a disk is opened: tests/golden/upgrade, which tests/golden/upgrade.py made.

Until the next release, that version is this one.
"""

from __future__ import annotations

import json
import runpy
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketvlm import VLM
from pocketvlm.errors import SessionError
from pocketvlm.files.bundle import Bundle
from pocketvlm.native.build import version
from pocketvlm.vision import encoder_speeds
from pocketvlm.vision.embedding_disk_cache import DiskCache

GOLDEN = Path(__file__).parent.parent / "golden"
LEFT = GOLDEN / "upgrade"
MAKE = runpy.run_path(str(GOLDEN / "upgrade.py"), run_name="upgrade")
ANSWERS: dict[str, Any] = json.loads((LEFT / "answers.json").read_text())


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(LEFT, tmp_path / "left"))


def test_a_bundle_and_a_session_go_on(left: Path) -> None:
    """The session has the state of the cache, which is used again, and the picture is not encoded again."""
    Bundle(left / "bundle").verify()
    with VLM.load(left / "bundle", **MAKE["LOAD"]) as vlm:
        first = MAKE["ask"](vlm, [MAKE["question"](MAKE["picture"]())])
    expected = ANSWERS["first"]
    assert (first["prompt_tokens"], first["cached_tokens"]) == (expected["prompt_tokens"], expected["cached_tokens"])
    if ANSWERS["llama_cpp_python"] != version():  # the state is llama.cpp's own
        with pytest.raises(SessionError, match="llama-cpp-python"):
            VLM.load(left / "bundle", session=left / "talk.session", **MAKE["LOAD"])
        return
    with VLM.load(left / "bundle", session=left / "talk.session", **MAKE["LOAD"]) as vlm:
        assert [message["role"] for message in vlm.conversation] == ["user", "assistant"]
        assert vlm.conversation[1]["content"].startswith(expected["text"])
        second = MAKE["ask"](vlm, [*vlm.conversation, {"role": "user", "content": MAKE["SECOND"]}])
    assert second["prompt_tokens"] == ANSWERS["second"]["prompt_tokens"]
    assert second["cached_tokens"] == ANSWERS["second"]["cached_tokens"] > 0
    assert second["picture"] == ANSWERS["second"]["picture"]


def test_entries_of_the_picture_cache_are_read(left: Path) -> None:
    (left / "pictures").chmod(0o700)
    entries = [*(left / "pictures").glob("*.emb")]
    assert entries
    for entry in entries:
        shape = struct.unpack_from("<II", entry.read_bytes(), 12)
        rows = DiskCache(left / "pictures", 1 << 20).read(entry.stem, shape)
        assert rows is not None
        assert rows.shape == shape
        assert np.isfinite(rows).all()


def test_what_a_batch_has_answered_is_not_asked_again(left: Path) -> None:
    """Only what was recorded of the file may change: a checkout gives it another time."""
    before = json.loads((left / "record.jsonl").read_text())
    MAKE["batch"](left)
    after = json.loads((left / "record.jsonl").read_text())
    assert after | {"files": None} == before | {"files": None}


def test_measurements_are_read(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(left / "cache"))
    ((device, speeds),) = encoder_speeds.recall_all().items()
    assert "llama-cpp-python" in device
    assert {speed.name.split(",")[0] for speed in speeds.values()} == {"vision-int8.onnx", "mmproj-f16.gguf"}
