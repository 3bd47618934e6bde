"""Pulled models: what is listed, what is removed, and what is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pocketvlm import VLM
from pocketvlm.errors import ModelError, ModelNotFoundError
from pocketvlm.files import pulled
from pocketvlm.files.locate import iota, pulled_models
from pocketvlm.files.pulled import all_pulled, find_pulled, mark_used, remove_pulled

# Holds a shared or exclusive lock until its standard input ends.
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.flock(file, fcntl.LOCK_EX if sys.argv[2] == "alone" else fcntl.LOCK_SH)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = tmp_path / "pocketvlm" / "models"
    for name in ("small", "acme/large", "acme/other"):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_bytes(b"{}")
        (folder / name / "model.gguf").write_bytes(bytes(1000))
    partial = folder / ".begun.download" / "0123abcd"
    partial.mkdir(parents=True)
    (partial / "model.safetensors.part").write_bytes(bytes(500))
    (folder / ".small.01234567.partial").mkdir()
    (folder / ".small.01234567.partial" / "manifest.json").touch()
    return folder


def hold(path: Path, how: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"locked\n"
    return process


@pytest.mark.usefixtures("models")
def test_what_is_listed() -> None:
    assert pulled_models() == ["acme/large", "acme/other", "small"], "what is being written is no model"
    listed = {model.name: (model.size, model.last_used, model.complete) for model in all_pulled()}
    assert listed == {
        "acme/large": (1002, None, True),
        "acme/other": (1002, None, True),
        "begun": (500, None, False),
        "small": (1002, None, True),
    }


def test_the_last_use(models: Path) -> None:
    before = time.time() - 2
    used = mark_used(models / "small")
    assert used is not None
    used.close()
    used.close()
    last = find_pulled("small").last_used
    assert last is not None and before < last < time.time() + 2
    assert mark_used(models.parent) is None and mark_used(iota()) is None, "only pulled models"
    assert find_pulled("acme/large").last_used is None


def test_what_is_removed(models: Path) -> None:
    shutil.copytree(models / ".begun.download", models / ".small.download")
    remove_pulled(find_pulled("small"))
    assert {path.name for path in models.iterdir()} == {"acme", ".begun.download", ".small.01234567.partial"}
    remove_pulled(find_pulled("begun"))
    remove_pulled(find_pulled("acme/large"))
    assert pulled_models() == ["acme/other"]
    remove_pulled(find_pulled("acme/other"))
    assert not (models / "acme").exists(), "an empty owner is removed, too"


@pytest.mark.parametrize("name", ["..", "../models/small", "/etc", "small/", "acme", "nothing", "", ".begun.download"])
@pytest.mark.usefixtures("models")
def test_only_names_are_removed(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no model of this name was pulled"):
        find_pulled(name)


def test_of_a_link_the_link_is_removed(models: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "mine"
    shutil.copytree(models / "small", elsewhere)
    (models / "link").symlink_to(elsewhere)
    remove_pulled(find_pulled("link"))
    assert not (models / "link").exists() and (elsewhere / "model.gguf").exists()
    (models / "owner").symlink_to(elsewhere.parent)
    with pytest.raises(ModelError, match="leads out of the folder of models"):
        remove_pulled(find_pulled("owner/mine"))
    assert (elsewhere / "model.gguf").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there, files that are open cannot be renamed")
@pytest.mark.parametrize(
    ("lock", "how", "words"),
    [("small/.used", "shared", "is in use"), (".small.download/.lock", "alone", "is being pulled")],
)
def test_what_is_in_use_stays(lock: str, how: str, words: str, models: Path) -> None:
    (models / ".small.download").mkdir()
    process = hold(models / lock, how)
    with pytest.raises(ModelError, match=f"small: {words}"):
        remove_pulled(find_pulled("small"))
    assert (models / "small" / "model.gguf").exists()
    process.communicate()
    remove_pulled(find_pulled("small"))
    assert "small" not in pulled_models()


def test_a_removal_that_fails_names_the_model(models: Path) -> None:
    left = models / f".large.0123{pulled._REMOVED}"  # of a removal that was killed
    left.mkdir()
    if os.geteuid():  # root may write everywhere
        (models / "acme").chmod(0o500)
        with pytest.raises(ModelError, match="acme/large: cannot be removed"):
            remove_pulled(find_pulled("acme/large"))
        (models / "acme").chmod(0o700)
    remove_pulled(find_pulled("acme/large"))
    assert not left.exists()


def test_a_loaded_model_is_in_use(models: Path) -> None:
    shutil.rmtree(models / "small")
    shutil.copytree(iota(), models / "small")
    with VLM.load("small", vision="gguf"), pytest.raises(ModelError, match="is in use"):
        remove_pulled(find_pulled("small"))
    assert find_pulled("small").last_used is not None
    remove_pulled(find_pulled("small"))
